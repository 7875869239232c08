// Sums in a fixed order: the same bits on every run.
#pragma once

namespace kiln {

// Sum over the 32 lanes of a full warp; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Sum over a block of kThreads (a multiple of 32); thread 0 gets it. `scratch`: kThreads/32 elements of
// shared memory, free for other use after the block's next __syncthreads().
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T v, T* scratch) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "a block is whole warps");
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < kThreads / 32 ? scratch[threadIdx.x] : T(0);
    v = warp_sum(v);
  }
  return v;
}

}  // namespace kiln
