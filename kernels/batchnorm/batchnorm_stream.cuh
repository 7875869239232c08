// Memory accesses by what becomes of the line: values that are read once leave L2 first, so that those that
// will be read again stay (PTX ISA, "Cache Eviction Priority Hints").
#pragma once

#include <cstdint>

#include "kernels/common/mma.cuh"
#include "kernels/common/vec.cuh"

namespace kiln {

enum class Store { kPlain, kStreaming };  // streaming: the line leaves L2 first

template <Store kStore, class T, int V>
__device__ __forceinline__ void store_row(const Vec<T, V>& row, T* to) {
  if constexpr (kStore == Store::kPlain) {
    row.store(to);
  } else {
    static_assert(sizeof row == 16, "16 bytes an access");
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&row));
  }
}

// 16 bytes that are not needed again.
template <class T, int V>
__device__ __forceinline__ void load_once(const T* from, Vec<T, V>& row) {
  static_assert(sizeof row == 16, "16 bytes an access");
  *reinterpret_cast<uint4*>(&row) = __ldcs(reinterpret_cast<const uint4*>(from));
}

__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

// Starts the copy of 16 bytes into shared memory; cp_async_commit() and cp_async_wait() of mma.cuh end it.
__device__ __forceinline__ void copy_once(void* to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;\n" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "l"(policy)
               : "memory");
}

// Starts bringing the line into L2.
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(from));
}

}  // namespace kiln
