// Small helpers of launchers: grid sizes.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/common/dtype.h"
#include "kernels/common/error.h"

namespace kiln {

// a / b, rounded up, for b > 0; no sum that could overflow.
template <class T>
constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return a / b + (a % b > 0 ? 1 : 0);
}
static_assert(ceil_div(2147483647, 512) == 4194304 && ceil_div(0, 8) == 0 && ceil_div(-9, 8) == -1 &&
              ceil_div(2147483647, 2147483647) == 1);

// Blocks for `work` items at `per_block` each, at most `most` (kernels loop over the rest with a grid
// stride).
inline unsigned grid_for(long long work, int per_block, long long most = 2147483647LL) {
  return static_cast<unsigned>(std::max(1LL, std::min(ceil_div<long long>(work, per_block), most)));
}

}  // namespace kiln
