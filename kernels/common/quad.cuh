// Exchanges among the four neighbouring lanes that hold a row of a tensor core's result.
#pragma once

#include <cstdint>

namespace kiln {

// Lane t of a quad has row t of a 4 x 4 matrix of words; after it column t.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const auto exchange = [](uint32_t& first, uint32_t& next, bool second, int lanes) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, second ? first : next, lanes);
    first = second ? other : first;
    next = second ? next : other;
  };
  exchange(v[0], v[1], odd, 1);
  exchange(v[2], v[3], odd, 1);
  exchange(v[0], v[2], high, 2);
  exchange(v[1], v[3], high, 2);
}

}  // namespace kiln
