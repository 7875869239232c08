// global_max_pool, the judge: plain loops over images.
#include <cmath>
#include <cstdint>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

// As in max_pool2d: the first maximum, unless there is a NaN, then the last NaN.
void global_max_pool_fwd(const GlobalMaxPoolProblem& p, const GlobalMaxPoolFwd::Args& a) {
  const float* x = f32(a.x);                    // [N,H,W,C]
  float* y = f32(a.y);                          // [N,C]
  int32_t* arg = static_cast<int32_t*>(a.arg);  // [N,C] or null
  const long long pixels = 1LL * p.h * p.w;
  for (long long n = 0; n < p.n; ++n) {
    for (long long c = 0; c < p.c; ++c) {
      float best = x[n * pixels * p.c + c];
      long long position = 0;
      for (long long i = 1; i < pixels; ++i) {
        const float v = x[(n * pixels + i) * p.c + c];
        if (v > best || std::isnan(v)) {
          best = v;
          position = i;
        }
      }
      y[n * p.c + c] = best;
      if (arg) arg[n * p.c + c] = static_cast<int32_t>(position);
    }
  }
}

void global_max_pool_bwd(const GlobalMaxPoolProblem& p, const GlobalMaxPoolBwd::Args& a) {
  const float* dy = f32(a.dy);                              // [N,C]
  const int32_t* arg = static_cast<const int32_t*>(a.arg);  // [N,C]
  float* dx = f32(a.dx);                                    // [N,H,W,C]
  const long long pixels = 1LL * p.h * p.w;
  for (long long n = 0; n < p.n; ++n) {
    for (long long i = 0; i < pixels; ++i) {
      for (long long c = 0; c < p.c; ++c) {
        dx[(n * pixels + i) * p.c + c] = arg[n * p.c + c] == i ? dy[n * p.c + c] : 0.0f;
      }
    }
  }
}

}  // namespace

extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_cpu_naive =
    cpu_impl<GlobalMaxPoolFwd, global_max_pool_fwd>("cpu_naive");
extern const Impl<GlobalMaxPoolBwd> global_max_pool_bwd_cpu_naive =
    cpu_impl<GlobalMaxPoolBwd, global_max_pool_bwd>("cpu_naive");

}  // namespace kiln
