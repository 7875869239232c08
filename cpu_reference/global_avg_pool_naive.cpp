// global_avg_pool, the judge: plain loops, sums in double.
#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

void global_avg_pool_fwd(const GlobalAvgPoolProblem& p, const GlobalAvgPoolFwd::Args& a) {
  const float* x = f32(a.x);  // [N,H,W,C]
  float* y = f32(a.y);        // [N,C]
  const long long pixels = 1LL * p.h * p.w;
  for (long long n = 0; n < p.n; ++n) {
    for (long long c = 0; c < p.c; ++c) {
      double sum = 0;
      for (long long i = 0; i < pixels; ++i) sum += x[(n * pixels + i) * p.c + c];
      y[n * p.c + c] = static_cast<float>(sum / static_cast<double>(pixels));
    }
  }
}

void global_avg_pool_bwd(const GlobalAvgPoolProblem& p, const GlobalAvgPoolBwd::Args& a) {
  const float* dy = f32(a.dy);  // [N,C]
  float* dx = f32(a.dx);        // [N,H,W,C]
  const long long pixels = 1LL * p.h * p.w;
  for (long long n = 0; n < p.n; ++n) {
    for (long long i = 0; i < pixels; ++i) {
      for (long long c = 0; c < p.c; ++c) {
        dx[(n * pixels + i) * p.c + c] = static_cast<float>(dy[n * p.c + c] / static_cast<double>(pixels));
      }
    }
  }
}

}  // namespace

extern const Impl<GlobalAvgPoolFwd> global_avg_pool_fwd_cpu_naive =
    cpu_impl<GlobalAvgPoolFwd, global_avg_pool_fwd>("cpu_naive");
extern const Impl<GlobalAvgPoolBwd> global_avg_pool_bwd_cpu_naive =
    cpu_impl<GlobalAvgPoolBwd, global_avg_pool_bwd>("cpu_naive");

}  // namespace kiln
