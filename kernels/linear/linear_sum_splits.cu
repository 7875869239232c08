// out[i,j] = bias[j] + sum_s partial[s][i,j], row_sums[i] = sum_s partial[s][m*n + i]: the second stage of a
// split sum of linear's smem_tile passes.
//
// A thread owns one element and adds the splits in order: coalesced across threads, no shared memory,
// deterministic. Mirrors cpu_reference/linear_naive.cpp with linear_tile.cuh.
#include "kernels/common/check.h"
#include "kernels/linear/linear_tile.cuh"

namespace kiln::linear_tile {
namespace {

constexpr int kThreads = 128;

template <class Out>
__global__ __launch_bounds__(kThreads) void linear_sum_splits_kernel(
    const float* __restrict__ partial,  // [splits, partial_stride]
    const float* __restrict__ bias,     // [n] or null
    Out* __restrict__ out,              // [m,n]
    float* __restrict__ row_sums,       // [m] or null
    const __grid_constant__ Shape shape) {
  const long long products = static_cast<long long>(shape.m) * shape.n;
  const long long elements = products + (row_sums ? shape.m : 0);
  const long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  float sum = 0;
#pragma unroll 8
  for (int split = 0; split < shape.splits; ++split) sum += partial[split * shape.partial_stride + i];
  if (i < products) {
    out[i] = from_float<Out>(sum + (bias ? bias[i % shape.n] : 0.0f));
  } else {
    row_sums[i - products] = sum;
  }
}

}  // namespace

void sum_splits(const float* partial, const Shape& shape, const float* bias, void* out, DType dtype,
                float* row_sums, Stream stream) {
  const unsigned blocks = grid_for(1LL * shape.m * shape.n + (row_sums ? shape.m : 0), kThreads);
  if (dtype == DType::kBF16) {
    linear_sum_splits_kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        partial, bias, static_cast<bf16*>(out), row_sums, shape);
    check_launch("linear_sum_splits_kernel (bf16)");
  } else {
    linear_sum_splits_kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        partial, bias, static_cast<float*>(out), row_sums, shape);
    check_launch("linear_sum_splits_kernel (fp32)");
  }
}

}  // namespace kiln::linear_tile
