// out[i,j] = bias[j] + sum_s partial[s][i,j], row_sums[i] = sum_s partial[s][m*n + i]: the second stage of a
// split sum of linear's passes.
//
// A thread owns V neighbouring elements of a row (4 where columns are a multiple of 4) and adds the parts in
// order: coalesced across threads, no shared memory, deterministic. The first threads beyond the products own
// a row sum each. Launched early (early_launch.cuh): its blocks take the places of the first stage's that are
// done, and wait for the last one. Mirrors cpu_reference/linear_naive.cpp with linear_tile.cuh,
// linear_mma_sync.cuh and linear_wgmma.cuh.
#include "kernels/common/add_parts.cuh"
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/linear/linear_split.h"

namespace kiln {
namespace {

constexpr int kThreads = 128;

template <int V, class Out>
__global__ __launch_bounds__(kThreads) void linear_sum_splits_kernel(
    const float* partial,            // [splits, stride]; not __restrict__, see wait_for_last
    const float* __restrict__ bias,  // [columns] or null
    Out* __restrict__ out,           // [rows,columns]
    float* __restrict__ row_sums,    // [rows] or null
    const __grid_constant__ LinearSplit split, size_t stride) {
  let_next_start();
  wait_for_last();  // all threads, before any of them can return: whatever follows this kernel relies on it
  const long long products = static_cast<long long>(split.rows) * split.columns;
  const long long thread = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  const long long i = thread * V;
  if (i < products) {
    Vec<float, V> sum = {};
    add_parts<V>(sum, partial + i, stride, split.count);
    Vec<Out, V> result;
#pragma unroll
    for (int e = 0; e < V; ++e) result.set(e, sum[e] + (bias ? bias[(i + e) % split.columns] : 0.0f));
    result.store(out + i);
    return;
  }
  const long long row = thread - products / V;
  if (!row_sums || row >= split.rows) return;
  Vec<float, 1> sum = {};
  add_parts<1>(sum, partial + products + row, stride, split.count);
  sum.store(row_sums + row);
}

template <int V, class Out>
void launch(const float* partial, const LinearSplit& split, const float* bias, void* out, float* row_sums,
            Stream stream) {
  const long long threads = 1LL * split.rows * split.columns / V + (row_sums ? split.rows : 0);
  const auto kernel = linear_sum_splits_kernel<V, Out>;
  static const bool early = waits_for_last(kernel, "linear_sum_splits_kernel");
  launch_kernel(kernel, "linear_sum_splits_kernel",
                {.grid = grid_for(threads, kThreads), .threads = kThreads, .early = early}, stream, partial,
                bias, static_cast<Out*>(out), row_sums, split, split.stride());
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
