#include "harness/tuning.h"

#include <filesystem>
#include <memory>

#include "kernels/common/error.h"

namespace kiln {

TuneCache load_tuned(const std::string& flag) {
  if (flag == "none") return {};
  if (!flag.empty()) {
    if (!std::filesystem::exists(flag)) {
      fail_usage("--tune-cache '" + flag +
                 "': there is no such file; `kiln tune` writes one, 'none' uses none");
    }
    return TuneCache::load(flag);
  }
  TuneCache cache;
  for (const EmbeddedCache& embedded : embedded_caches()) {
    cache.merge(TuneCache::parse(embedded.json, embedded.name));
  }
  cache.merge(TuneCache::load(default_tune_cache()));
  return cache;
}

void use_tuned(TuneCache cache, const Device& device, ImplChoice* choice) {
  if (!cache.devices().contains(device.name)) return;
  const auto shared = std::make_shared<const TuneCache>(std::move(cache));
  choice->set_tuned([shared, name = device.name](const std::string& key, const std::string& signature) {
    const TunedChoice* found = shared->find(name, key);
    return found && found->signature == signature ? found->impl : std::string();
  });
}

void use_recorded(std::map<std::string, std::string> recorded, ImplChoice* choice) {
  const auto shared = std::make_shared<const std::map<std::string, std::string>>(std::move(recorded));
  choice->set_tuned([shared, before = choice->tuned()](const std::string& key, const std::string& signature) {
    // "<op>.<pass>/<problem>/<dtype>" to "<op>.<pass> <problem>".
    std::string name = key.substr(0, key.rfind('/'));
    name[name.find('/')] = ' ';
    const auto found = shared->find(name);
    if (found != shared->end()) return found->second;
    return before ? before(key, signature) : std::string();
  });
}

}  // namespace kiln
