// avg_pool2d, the judge: plain loops over windows, sums in double. Padding counts: the divisor is the
// window's size.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

void avg_pool2d_fwd(const AvgPool2dProblem& o, const AvgPool2dFwd::Args& a) {
  const float* x = f32(a.x);  // [N,H,W,C]
  float* y = f32(a.y);        // [N,P,Q,C]
  long long i = 0;
  for (long long n = 0; n < o.n; ++n) {
    for (int p = 0; p < o.p(); ++p) {
      for (int q = 0; q < o.q(); ++q) {
        for (int c = 0; c < o.c; ++c, ++i) {
          double sum = 0;
          for (int r = 0; r < o.r; ++r) {
            for (int s = 0; s < o.s; ++s) {
              const int h = p * o.stride_h + r - o.pad_h;
              const int w = q * o.stride_w + s - o.pad_w;
              if (h < 0 || h >= o.h || w < 0 || w >= o.w) continue;
              sum += x[((n * o.h + h) * o.w + w) * o.c + c];
            }
          }
          y[i] = static_cast<float>(sum / (1.0 * o.r * o.s));
        }
      }
    }
  }
}

size_t bwd_bytes(const AvgPool2dProblem& o) { return sizeof(double) * o.n * o.h * o.w * o.c; }

// Scatters in double; an element's windows arrive in (p,q) order.
void avg_pool2d_bwd(const AvgPool2dProblem& o, const AvgPool2dBwd::Args& a, void* workspace) {
  const float* dy = f32(a.dy);                   // [N,P,Q,C]
  double* dx = static_cast<double*>(workspace);  // [N,H,W,C]
  const long long elements = static_cast<long long>(bwd_bytes(o) / sizeof(double));
  std::fill_n(dx, elements, 0.0);
  long long i = 0;
  for (long long n = 0; n < o.n; ++n) {
    for (int p = 0; p < o.p(); ++p) {
      for (int q = 0; q < o.q(); ++q) {
        for (int c = 0; c < o.c; ++c, ++i) {
          for (int r = 0; r < o.r; ++r) {
            for (int s = 0; s < o.s; ++s) {
              const int h = p * o.stride_h + r - o.pad_h;
              const int w = q * o.stride_w + s - o.pad_w;
              if (h < 0 || h >= o.h || w < 0 || w >= o.w) continue;
              dx[((n * o.h + h) * o.w + w) * o.c + c] += dy[i] / (1.0 * o.r * o.s);
            }
          }
        }
      }
    }
  }
  std::transform(dx, dx + elements, f32(a.dx), [](double v) { return static_cast<float>(v); });
}

}  // namespace

extern const Impl<AvgPool2dFwd> avg_pool2d_fwd_cpu_naive =
    cpu_impl<AvgPool2dFwd, avg_pool2d_fwd>("cpu_naive");
extern const Impl<AvgPool2dBwd> avg_pool2d_bwd_cpu_naive =
    cpu_impl<AvgPool2dBwd, bwd_bytes, avg_pool2d_bwd>("cpu_naive");

}  // namespace kiln
