// out[i,j] = bias[j] + sum_s partial[s][i,j], row_sums[i] = sum_s partial[s][m*n + i]: the second stage of a
// split sum of linear's passes.
//
// A thread owns V neighbouring elements of a row (4 where columns are a multiple of 4) and adds the parts in
// order: coalesced across threads, no shared memory, deterministic. The first threads beyond the products own
// a row sum each. Mirrors cpu_reference/linear_naive.cpp with linear_tile.cuh, linear_mma_sync.cuh and
// linear_wgmma.cuh.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/linear/linear_split.h"

namespace kiln {
namespace {

constexpr int kThreads = 128;

template <int V, class Out>
__global__ __launch_bounds__(kThreads) void linear_sum_splits_kernel(
    const float* __restrict__ partial,  // [splits, stride]
    const float* __restrict__ bias,     // [columns] or null
    Out* __restrict__ out,              // [rows,columns]
    float* __restrict__ row_sums,       // [rows] or null
    const __grid_constant__ LinearSplit split, size_t stride) {
  const long long products = static_cast<long long>(split.rows) * split.columns;
  const long long thread = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  const long long i = thread * V;
  if (i < products) {
    Vec<float, V> sum = {};
#pragma unroll 8
    for (int s = 0; s < split.count; ++s) {
      const auto v = Vec<float, V>::load(partial + s * stride + i);
#pragma unroll
      for (int e = 0; e < V; ++e) sum.v[e] += v.v[e];
    }
    Vec<Out, V> result;
#pragma unroll
    for (int e = 0; e < V; ++e) result.set(e, sum[e] + (bias ? bias[(i + e) % split.columns] : 0.0f));
    result.store(out + i);
    return;
  }
  const long long row = thread - products / V;
  if (!row_sums || row >= split.rows) return;
  float sum = 0;
#pragma unroll 8
  for (int s = 0; s < split.count; ++s) sum += partial[s * stride + products + row];
  row_sums[row] = sum;
}

template <int V, class Out>
void launch(const float* partial, const LinearSplit& split, const float* bias, void* out, float* row_sums,
            Stream stream) {
  const long long threads = 1LL * split.rows * split.columns / V + (row_sums ? split.rows : 0);
  linear_sum_splits_kernel<V><<<grid_for(threads, kThreads), kThreads, 0, cuda_stream(stream)>>>(
      partial, bias, static_cast<Out*>(out), row_sums, split, split.stride());
  check_launch("linear_sum_splits_kernel");
}

}  // namespace

void linear_sum_splits(const float* partial, const LinearSplit& split, const float* bias, void* out,
                       DType dtype, float* row_sums, Stream stream) {
  const bool vector = split.columns % 4 == 0;
  if (dtype == DType::kBF16) {
    (vector ? launch<4, bf16> : launch<1, bf16>)(partial, split, bias, out, row_sums, stream);
  } else {
    (vector ? launch<4, float> : launch<1, float>)(partial, split, bias, out, row_sums, stream);
  }
}

}  // namespace kiln
