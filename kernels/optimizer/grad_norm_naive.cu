// grad_norm: norm[0] = sqrt(sum_i g[i]^2).
//
// The first rung: one block, a thread adds every 1024th square in double, then the block adds up its threads
// in fixed order. 256 bytes of shared memory, any size, deterministic. Mirrors
// cpu_reference/grad_norm_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/reduce.cuh"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

constexpr int kThreads = 1024;

__global__ __launch_bounds__(kThreads) void grad_norm_fwd_naive_kernel(const float* __restrict__ grad,  // [n]
                                                                       float* __restrict__ norm,        // [1]
                                                                       long long n) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (long long i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(grad[i]) * grad[i];
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

extern const Impl<GradNorm> grad_norm_fwd_naive = {
    .name = "naive",
    .supports = [](const GradNormProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const GradNormProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return make_plan<GradNorm::Args>(0, [n = p.n](const GradNorm::Args& a, void*, Stream stream) {
            grad_norm_fwd_naive_kernel<<<1, kThreads, 0, cuda_stream(stream)>>>(
                static_cast<const float*>(a.grad), static_cast<float*>(a.norm), n);
            check_launch("grad_norm_fwd_naive_kernel");
          });
        }};

}  // namespace kiln
