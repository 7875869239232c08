// Long reductions cut into ranges for the blocks of the GPU, and the kernels that add the ranges' sums in
// order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

struct Split {
  int count = 0;   // ranges; the last may be shorter, none is empty
  int length = 0;  // elements of a range
};

// The longest range that tensor cores should sum in one go: they truncate as they add, an error that grows
// with the length of the chain times the size of the sum, against bounds that grow with `terms`, the whole
// sum's.
inline int longest_chain(int terms, int shortest) {
  return static_cast<int>(shortest * std::max(1.0, std::sqrt(terms / 8192.0)));
}

// Cuts `total` elements into ranges of a multiple of `step`, where each of `tiles` blocks a range needs a
// place among `places` on the GPU: the count from `least` on that finishes first, counting whole waves and,
// for each wave, the cost of writing and adding its sums (as much as `sum_steps` steps). The workspace holds
// at most 128 MiB of sums of `out` floats.
inline Split choose_split(int total, int step, long long tiles, long long places, long long out,
                          long long least = 1, int sum_steps = 4) {
  const long long most = std::clamp<long long>((32LL << 20) / out, 1, 65535);
  const long long limit = std::min(most, std::max(1LL, ceil_div<long long>(total, 8LL * step)));
  least = std::min(least, limit);
  Split best;
  double best_cost = 0;
  for (long long count = least; count <= limit && tiles * (count - least) < 4 * places; ++count) {
    const int length = static_cast<int>(ceil_div<long long>(ceil_div<long long>(total, count), step) * step);
    const double waves = static_cast<double>(ceil_div(tiles * count, places));
    const double cost = waves * (length + 1.0 * sum_steps * step);
    if (best.count == 0 || cost < best_cost) {
      best = {static_cast<int>(ceil_div<long long>(total, length)), length};
      best_cost = cost;
    }
  }
  return best;
}

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
// memory 1 KiB; else each thread sums all ranges of its own elements.
template <int V, bool kShared, class Ranges>
__global__ __launch_bounds__(32 * kSumWarps) void sum_splits_kernel(
    const float* __restrict__ partial,  // [splits,elements]
    const Ranges ranges, int elements,
    float* __restrict__ out) {  // [elements]
  const int warp = threadIdx.x / 32;
  const int i = (kShared ? blockIdx.x * 32 + threadIdx.x % 32 : blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int splits = i < elements ? ranges(i) : 0;
  const int begin = kShared ? splits * warp / kSumWarps : 0;
  const int end = kShared ? splits * (warp + 1) / kSumWarps : splits;
  Vec<float, V> sum = {};
#pragma unroll 8
  for (int j = begin; j < end; ++j) {
    const Vec<float, V> v = Vec<float, V>::load(partial + static_cast<size_t>(j) * elements + i);
#pragma unroll
    for (int e = 0; e < V; ++e) sum.v[e] += v.v[e];
  }
  if (kShared) {
#pragma unroll
    for (int e = 0; e < V; ++e) sum.v[e] = add_warps(sum.v[e]);
    if (warp > 0) return;
  }
  if (splits > 0) sum.store(out + i);
}

template <int V, bool kShared, class Ranges>
void launch_sum_splits(const float* partial, const Ranges& ranges, int elements, float* out, Stream stream) {
  const int per_block = V * 32 * (kShared ? 1 : kSumWarps);
  sum_splits_kernel<V, kShared><<<ceil_div(elements, per_block), 32 * kSumWarps, 0, cuda_stream(stream)>>>(
      partial, ranges, elements, out);
  check_launch("sum_splits_kernel");
}

// `splits`: the most ranges of an element. Where `elements` is a multiple of 4, groups of 4 have as many.
template <class Ranges>
void sum_ranges(const float* partial,  // [splits,elements]
                int splits, const Ranges& ranges, int elements,
                float* out,  // [elements]
                Stream stream) {
  const bool aligned = elements % 4 == 0 &&
                       (reinterpret_cast<uintptr_t>(partial) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  if (!aligned) {
    launch_sum_splits<1, true>(partial, ranges, elements, out, stream);
  } else if (splits > 8 || elements < 65536) {  // threads that sum alone would be too few to hide latency
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
