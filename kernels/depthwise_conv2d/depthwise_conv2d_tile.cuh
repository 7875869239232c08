// How the fast depthwise kernels cover their work with blocks and threads, and the access they are built on.
//
// A thread owns a pair of neighbouring channels, so that the filter of a pair stays in registers as fp32. It
// owns a strip of neighbouring output columns and walks down a task: some rows of one image. A block is
// lanes_c pairs x lanes_s strips x lanes_t tasks, in this order along its warps. Its strips lie side by side,
// so that the columns which two strips share are read from the L1 cache; its pairs are at least 64 bytes of a
// pixel where there are as many.
#pragma once

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/common/error.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {

struct DepthwiseTile {
  int pairs, strips, tasks;          // what there is
  int lanes_c, lanes_s, lanes_t;     // of a block, each at most 64 but lanes_c
  int blocks_c, blocks_s, blocks_t;  // blocks_t * lanes_t may be less than tasks: threads then take several
  dim3 block() const {
    return {static_cast<unsigned>(lanes_c), static_cast<unsigned>(lanes_s), static_cast<unsigned>(lanes_t)};
  }
  unsigned grid() const { return static_cast<unsigned>(blocks_c) * blocks_s * blocks_t; }
};

// Blocks of at most `threads` threads, enough for every task.
inline DepthwiseTile make_depthwise_tile(int pairs, int strips, int tasks, int threads) {
  constexpr int kMostStrips = 8, kMostTasks = 64;  // 64: CUDA's limit
  DepthwiseTile t{};
  t.pairs = pairs;
  t.strips = strips;
  t.tasks = tasks;
  t.blocks_s = ceil_div(strips, kMostStrips);
  t.lanes_s = ceil_div(strips, t.blocks_s);
  t.blocks_c = ceil_div(pairs, threads / t.lanes_s);
  t.lanes_c = ceil_div(pairs, t.blocks_c);
  t.lanes_t = std::min({threads / (t.lanes_s * t.lanes_c), kMostTasks, tasks});
  t.blocks_t = ceil_div(tasks, t.lanes_t);
  return t;
}

// What a thread owns; pairs vary fastest over blocks, so that neighbouring blocks read the same pixels.
struct DepthwisePlace {
  int pair, strip, task;
  int block_c, block_t;
};

__device__ __forceinline__ DepthwisePlace depthwise_place(const DepthwiseTile& t) {
  const int b = static_cast<int>(blockIdx.x), rest = b / t.blocks_c;
  DepthwisePlace at;
  at.block_c = b - rest * t.blocks_c;
  at.block_t = rest / t.blocks_s;
  const int block_s = rest - at.block_t * t.blocks_s;
  at.pair = at.block_c * t.lanes_c + static_cast<int>(threadIdx.x);
  at.strip = block_s * t.lanes_s + static_cast<int>(threadIdx.y);
  at.task = at.block_t * t.lanes_t + static_cast<int>(threadIdx.z);
  return at;
}

// Rows of a task from a config "p<rows>", 0 for "".
inline int depthwise_rows_of_config(std::string_view config) {
  if (config.empty()) return 0;
  int rows = 0;
  const char *begin = config.data() + 1, *end = config.data() + config.size();
  if (config[0] == 'p' && begin != end) {
    const auto [stop, error] = std::from_chars(begin, end, rows);
    if (error == std::errc() && stop == end && rows > 0) return rows;
  }
  fail_usage("the config is p<rows>, the rows a thread walks down (p8), got '" + std::string(config) + "'");
}

// The walks worth trying down a map of `height` rows.
inline std::vector<std::string> depthwise_configs(int height) {
  std::vector<std::string> configs;
  for (const int rows : {32, 16, 8, 4, 2}) {
    if (rows < 2 * height) configs.push_back(std::string("p").append(std::to_string(rows)));
  }
  return configs;
}

// Whether the kernels of this family are compiled for a problem.
inline Support depthwise_supports(const DepthwiseConv2dProblem& p, const Device&) {
  if (p.c % 2 != 0) return Support::no("channels must be even");
  if (p.r != p.s || (p.r != 3 && p.r != 5)) return Support::no("the filter must be 3x3 or 5x5");
  if (1LL * std::max(p.w, p.q()) * p.c >= 1 << 28) {
    return Support::no("rows must be below 2^28 elements");  // their bytes are unsigned numbers
  }
  return Support::require(p.stride_h == p.stride_w && (p.stride_h == 1 || p.stride_h == 2),
                          "the stride must be 1 or 2, the same in both directions");
}

// Two neighbouring channels as one access, as fp32 in arithmetic.
template <class T>
struct ChannelPair;

template <>
struct ChannelPair<bf16> {
  unsigned bits;
  __device__ __forceinline__ void clear() { bits = 0; }
  __device__ __forceinline__ void load(const bf16* p) { bits = __ldg(reinterpret_cast<const unsigned*>(p)); }
  __device__ __forceinline__ float2 value() const {
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  }
  __device__ __forceinline__ static void store(bf16* p, float2 v) {
    *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(v.x, v.y);
  }
};

template <>
struct ChannelPair<float> {
  float2 pair;
  __device__ __forceinline__ void clear() { pair = {0.0f, 0.0f}; }
  __device__ __forceinline__ void load(const float* p) { pair = __ldg(reinterpret_cast<const float2*>(p)); }
  __device__ __forceinline__ float2 value() const { return pair; }
  __device__ __forceinline__ static void store(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
};

__device__ __forceinline__ void fma_pair(float2& sum, float2 a, float2 b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
}

// Bit i: whether pixel first + i of a row of `length` pixels exists.
template <int kCount>
__device__ __forceinline__ unsigned pixels_inside(int first, int length) {
  unsigned inside = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    inside |= static_cast<unsigned>(first + i) < static_cast<unsigned>(length) ? 1u << i : 0u;
  }
  return inside;
}

// Hides from the compiler how a value was computed, so that it stays in registers: it would rather unpack
// bf16 taps again for each use, and compute masks again for each access.
__device__ __forceinline__ void keep(float2& v) { asm("" : "+f"(v.x), "+f"(v.y)); }
__device__ __forceinline__ void keep(unsigned& v) { asm("" : "+r"(v)); }

// A thread's own values in shared memory, at an address of __cvta_generic_to_shared. volatile: they stay in
// order among themselves, and the compiler does not move the values back into registers.
__device__ __forceinline__ float2 load_own(unsigned shared) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(shared));
  return v;
}
__device__ __forceinline__ void store_own(unsigned shared, float2 v) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(v.x), "f"(v.y));
}

template <class T>
__device__ __forceinline__ T* offset_by(T* p, ptrdiff_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}

// kCount neighbouring pixels of a row, pixel_bytes apart; those that are not inside the image are cleared
// once and never loaded.
template <class T, int kCount>
struct PixelRow {
  ChannelPair<T> at[kCount];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) at[i].clear();
  }
  __device__ __forceinline__ void load(const T* row, unsigned pixel_bytes, unsigned inside) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (inside >> i & 1u) at[i].load(offset_by(row, static_cast<ptrdiff_t>(pixel_bytes) * i));
    }
  }
};

// Stores kCount neighbouring pixels, those inside the image.
template <class T, int kCount>
__device__ __forceinline__ void store_pixels(T* row, unsigned pixel_bytes, unsigned inside,
                                             const float2 (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    T* at = offset_by(row, static_cast<ptrdiff_t>(pixel_bytes) * i);
    if (inside >> i & 1u) ChannelPair<T>::store(at, v[i]);
  }
}

}  // namespace kiln
