// Small helpers of launchers: grid sizes.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/common/dtype.h"
#include "kernels/common/error.h"

namespace kiln {

template <class T>
constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}

// Blocks for `work` items at `per_block` each, at most `most` (kernels loop over the rest with a grid
// stride).
inline unsigned grid_for(long long work, int per_block, long long most = 2147483647LL) {
  return static_cast<unsigned>(std::max(1LL, std::min(ceil_div<long long>(work, per_block), most)));
}

}  // namespace kiln
