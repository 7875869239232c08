// The second half of a sum that was cut into parts: a thread adds its elements of all parts, in order.
#pragma once

#include <cstddef>

#include "kernels/common/vec.cuh"

namespace kiln {

// Adds `count` parts, from kLeast to kMost. All are read before the first is added: one wait for memory.
template <int kLeast, int kMost, int V>
__device__ __forceinline__ void add_parts_at_once(Vec<float, V>& sum, const float* part, size_t apart,
                                                  int count) {
  Vec<float, V> v[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < kLeast || i < count) v[i] = Vec<float, V>::load(part + i * apart);
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < kLeast || i < count) {
#pragma unroll
      for (int e = 0; e < V; ++e) sum.v[e] += v[i].v[e];
    }
  }
}

// Adds `count` parts that lie `apart` elements apart.
template <int V>
__device__ __forceinline__ void add_parts(Vec<float, V>& sum, const float* part, size_t apart, int count) {
  constexpr int kMost = V == 4 ? 8 : 24, kFew = V == 4 ? 4 : 8;
#pragma unroll 1
  for (; count >= kMost; count -= kMost, part += kMost * apart) {
    add_parts_at_once<kMost, kMost>(sum, part, apart, count);
  }
  if (count > kFew) {
    add_parts_at_once<kFew + 1, kMost - 1>(sum, part, apart, count);
  } else if (count > 0) {
    add_parts_at_once<1, kFew>(sum, part, apart, count);
  }
}

}  // namespace kiln
