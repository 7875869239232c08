// The built-in networks' JSON files, compiled in (nn/embed_models.cmake writes the definition).
#pragma once

#include <string_view>
#include <vector>

namespace kiln {

struct EmbeddedModel {
  const char* name;       // the file's stem
  std::string_view json;  // its text
};
const std::vector<EmbeddedModel>& embedded_models();

}  // namespace kiln
