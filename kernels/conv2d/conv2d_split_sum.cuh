// The kernels that add the sums of the ranges of a long reduction (conv2d_split.h) in order. They are
// launched early (early_launch.cuh): behind a kernel that calls let_next_start they are on their way before
// it ends, and wait for its end themselves.
#pragma once

#include <cstdint>

#include "kernels/common/add_parts.cuh"
#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_split.h"

namespace kiln {
namespace {

constexpr int kSumWarps = 8;

// The warps' values of one lane added in warp order; warp 0 gets the sum.
__device__ inline float add_warps(float v) {
  __shared__ float sums[kSumWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  sums[warp][lane] = v;
  __syncthreads();
  if (warp == 0) {
    for (int i = 1; i < kSumWarps; ++i) v += sums[i][lane];
  }
  __syncthreads();  // the sums have been read
  return v;
}

// How many ranges element i has; 0: it is not summed.
struct SameRanges {
  int count;
  __device__ __forceinline__ int operator()(int) const { return count; }
};

// out[i] = sum_j partial[j][i], j below ranges(i). A lane owns V neighbouring elements, of as many ranges.
// kShared: a block owns 32 V elements and a warp a contiguous range of j (many ranges, few elements), shared
// memory V KiB; else each thread sums all ranges of its own elements.
template <int V, bool kShared, class Ranges>
__global__ __launch_bounds__(32 * kSumWarps, kShared ? 4 : 5) void sum_splits_kernel(
    const float* partial,  // [splits,elements]; not __restrict__, see wait_for_last
    const __grid_constant__ Ranges ranges, int elements,
    float* __restrict__ out) {  // [elements]
  let_next_start();
  const int warp = threadIdx.x / 32;
  const int i = (kShared ? blockIdx.x * 32 + threadIdx.x % 32 : blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int splits = i < elements ? ranges(i) : 0;
  const int begin = kShared ? splits * warp / kSumWarps : 0;
  const int end = kShared ? splits * (warp + 1) / kSumWarps : splits;
  Vec<float, V> sum = {};
  wait_for_last();  // all threads, before any of them can return: whatever follows this kernel relies on it
  add_parts<V>(sum, partial + static_cast<size_t>(begin) * elements + i, elements, end - begin);
  if constexpr (kShared) {
    __shared__ Vec<float, V> sums[kSumWarps][32];
    const int lane = threadIdx.x % 32;
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int j = 1; j < kSumWarps; ++j) {
#pragma unroll
      for (int e = 0; e < V; ++e) sum.v[e] += sums[j][lane].v[e];
    }
  }
  if (splits > 0) sum.store(out + i);
}

template <int V, bool kShared, class Ranges>
void launch_sum_splits(const float* partial, const Ranges& ranges, int elements, float* out, Stream stream) {
  const auto kernel = sum_splits_kernel<V, kShared, Ranges>;
  static const bool early = waits_for_last(kernel, "sum_splits_kernel");
  launch_kernel(kernel, "sum_splits_kernel",
                {.grid = static_cast<unsigned>(ceil_div(elements, V * 32 * (kShared ? 1 : kSumWarps))),
                 .threads = 32 * kSumWarps,
                 .early = early},
                stream, partial, ranges, elements, out);
}

// Behind the launch that writes `partial`. `splits`: the most ranges of an element. Where `elements` is a
// multiple of 4, groups of 4 have as many.
template <class Ranges>
void sum_ranges(const float* partial,  // [splits,elements]
                int splits, const Ranges& ranges, int elements,
                float* out,  // [elements]
                Stream stream) {
  const bool aligned = elements % 4 == 0 &&
                       (reinterpret_cast<uintptr_t>(partial) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  // Threads that sum alone would be too few to hide latency.
  const bool shared = splits > 16 || elements < (splits > 8 ? 262144 : 65536);
  if (!aligned || elements <= 8192) {  // single elements give the GPU blocks enough
    launch_sum_splits<1, true>(partial, ranges, elements, out, stream);
  } else if (shared) {
    launch_sum_splits<4, true>(partial, ranges, elements, out, stream);
  } else {
    launch_sum_splits<4, false>(partial, ranges, elements, out, stream);
  }
}

inline void sum_splits(const float* partial,  // [splits,elements]
                       int splits, int elements,
                       float* out,  // [elements]
                       Stream stream) {
  sum_ranges(partial, splits, SameRanges{splits}, elements, out, stream);
}

// partial[j][k] = sum of x[i][k] over range j. A block owns 32 columns of a range, its warps take rows round
// robin. Shared memory 1 KiB.
template <class T>
__global__ __launch_bounds__(32 * kSumWarps) void sum_rows_kernel(
    const T* __restrict__ x,  // [rows,columns]
    int rows, int columns, int length,
    float* __restrict__ partial) {  // [splits,columns]
  let_next_start();
  const int k = blockIdx.x * 32 + threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long first = 1LL * blockIdx.y * length;
  const long long end = k < columns ? min(first + length, static_cast<long long>(rows)) : 0;
  float sum = 0;
#pragma unroll 8
  for (long long i = first + warp; i < end; i += kSumWarps) sum += to_float(x[i * columns + k]);
  sum = add_warps(sum);
  if (warp == 0 && k < columns) partial[static_cast<size_t>(blockIdx.y) * columns + k] = sum;
}

// out[k] = sum_i x[i][k] through `split` ranges of rows.
template <class T>
void sum_rows(const T* x,  // [rows,columns]
              int rows, int columns, const Split& split,
              float* partial,  // [split.count,columns]
              float* out,      // [columns]
              Stream stream) {
  const dim3 grid(ceil_div(columns, 32), split.count);
  sum_rows_kernel<T>
      <<<grid, 32 * kSumWarps, 0, cuda_stream(stream)>>>(x, rows, columns, split.length, partial);
  check_launch("sum_rows_kernel");
  sum_splits(partial, split.count, columns, out, stream);
}

}  // namespace
}  // namespace kiln
