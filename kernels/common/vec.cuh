// Vector access: a Vec<T, V> is V elements of T moved as one access (16 bytes at most), read and written as
// fp32 (or double in the naive kernels through to_float).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace kiln {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}

// One access of V elements. sizeof(T) * V must be 2, 4, 8 or 16; pointers must be aligned to it.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T v[V];

  __device__ __forceinline__ static Vec load(const T* p) { return *reinterpret_cast<const Vec*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Vec*>(p) = *this; }
  __device__ __forceinline__ float operator[](int i) const { return to_float(v[i]); }
  __device__ __forceinline__ void set(int i, float x) { v[i] = from_float<T>(x); }
};

// Elements of T in 16 bytes.
template <class T>
constexpr int kVec16 = 16 / static_cast<int>(sizeof(T));

}  // namespace kiln
