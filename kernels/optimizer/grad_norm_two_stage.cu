// grad_norm: norm[0] = sqrt(sum_i g[i]^2).
//
// Stage one: up to 1024 blocks stride over the slab, a thread adds the squares of 16-byte vectors in double
// (so that neither a huge nor a tiny gradient is lost), the block adds up its threads and writes one partial
// sum. Stage two: one block adds the partial sums in fixed order. 64 bytes of shared memory, tensors 16-byte
// aligned, any n, deterministic, with bits that do not depend on the device. Mirrors
// cpu_reference/grad_norm_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int kMostBlocks = 1024;

__device__ __forceinline__ double square(float v) { return static_cast<double>(v) * static_cast<double>(v); }

__global__ __launch_bounds__(kThreads) void grad_norm_partial_kernel(
    const float* __restrict__ grad,  // [n]
    double* __restrict__ partial,    // [gridDim.x]
    int n) {
  __shared__ double scratch[kThreads / 32];
  const int vectors = n / kVector, stride = gridDim.x * kThreads;
  const int thread = blockIdx.x * kThreads + threadIdx.x;
  double sum = 0;
#pragma unroll 4
  for (int i = thread; i < vectors; i += stride) {
    const auto g = Vec<float, kVector>::load(grad + static_cast<size_t>(i) * kVector);
    sum += (square(g[0]) + square(g[1])) + (square(g[2]) + square(g[3]));
  }
  const int tail = n - vectors * kVector;
  if (thread < tail) sum += square(grad[vectors * kVector + thread]);
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ __launch_bounds__(kThreads) void grad_norm_final_kernel(
    const double* __restrict__ partial,  // [count]
    float* __restrict__ norm,            // [1]
    int count) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

extern const Impl<GradNorm> grad_norm_fwd_two_stage = {
    .name = "two_stage",
    .supports = [](const GradNormProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const GradNormProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          const int n = static_cast<int>(p.n);
          const int blocks = static_cast<int>(grid_for(n, kThreads * kVector, kMostBlocks));
          const auto launch = [n, blocks](const GradNorm::Args& a, void* workspace, Stream stream) {
            auto* partial = static_cast<double*>(workspace);
            grad_norm_partial_kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(
                static_cast<const float*>(a.grad), partial, n);
            check_launch("grad_norm_partial_kernel");
            grad_norm_final_kernel<<<1, kThreads, 0, cuda_stream(stream)>>>(
                partial, static_cast<float*>(a.norm), blocks);
            check_launch("grad_norm_final_kernel");
          };
          return make_plan<GradNorm::Args>(blocks * sizeof(double), launch);
        }};

}  // namespace kiln
