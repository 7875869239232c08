// Where tuned choices come from: the caches compiled in, the user's, a run that is resumed.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/impl_choice.h"
#include "kernels/common/tune_cache.h"

namespace kiln {

struct EmbeddedCache {
  const char* name;       // the file's stem
  std::string_view json;  // its text
};
// harness/tuned/*.json, one a GPU that kiln was tuned on.
const std::vector<EmbeddedCache>& embedded_caches();

// --tune-cache: "" for the user's cache over those compiled in, "none" for no cache, else a file, which must
// be there. Throws Error for a damaged one.
TuneCache load_tuned(const std::string& flag);

// `choice` asks `cache` where the user has no wish.
void use_tuned(TuneCache cache, const Device& device, ImplChoice* choice);

// `choice` takes what a run was made with, by "<op>.<pass> <problem>"; what is not in there is left to what
// it asked before.
void use_recorded(std::map<std::string, std::string> recorded, ImplChoice* choice);

}  // namespace kiln
