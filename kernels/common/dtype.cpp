#include "kernels/common/dtype.h"

#include <array>

#include "kernels/common/error.h"

namespace kiln {
namespace {
constexpr std::array<const char*, 6> kNames = {"fp32", "tf32", "bf16", "fp16", "int32", "uint8"};
}

const char* name_of(DType t) { return kNames[static_cast<size_t>(t)]; }

DType dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<DType>(i);
  }
  fail_usage(unknown_name_message("dtype", name, {kNames.begin(), kNames.end()}));
}

}  // namespace kiln
