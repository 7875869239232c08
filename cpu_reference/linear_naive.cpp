// linear, the judge: plain loops, sums in double.
#include "cpu_reference/cpu_support.h"
#include "kernels/linear/linear.h"

namespace kiln {
namespace {

// sum_i a[i * a_stride] * b[i * b_stride]
double dot(const float* a, size_t a_stride, const float* b, size_t b_stride, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(a[i * a_stride]) * b[i * b_stride];
  return sum;
}

void linear_fwd(const LinearProblem& p, const LinearFwd::Args& a) {
  const float* x = f32(a.x);        // [N,C]
  const float* w = f32(a.w);        // [K,C]
  const float* bias = f32(a.bias);  // [K], null without bias
  float* y = f32(a.y);              // [N,K]
  const size_t c = p.c, k = p.k;
  for (size_t in = 0; in < static_cast<size_t>(p.n); ++in) {
    for (size_t ik = 0; ik < k; ++ik) {
      const double sum = dot(x + in * c, 1, w + ik * c, 1, p.c);
      y[in * k + ik] = static_cast<float>(sum + (bias ? bias[ik] : 0.0f));
    }
  }
}

void linear_dgrad(const LinearProblem& p, const LinearDgrad::Args& a) {
  const float* dy = f32(a.dy);  // [N,K]
  const float* w = f32(a.w);    // [K,C]
  float* dx = f32(a.dx);        // [N,C]
  const size_t c = p.c, k = p.k;
  for (size_t in = 0; in < static_cast<size_t>(p.n); ++in) {
    for (size_t ic = 0; ic < c; ++ic) {
      dx[in * c + ic] = static_cast<float>(dot(dy + in * k, 1, w + ic, c, p.k));
    }
  }
}

void linear_wgrad(const LinearProblem& p, const LinearWgrad::Args& a) {
  const float* dy = f32(a.dy);  // [N,K]
  const float* x = f32(a.x);    // [N,C]
  float* dw = f32(a.dw);        // [K,C]
  float* dbias = f32(a.dbias);  // [K], null without bias
  const size_t c = p.c, k = p.k;
  for (size_t ik = 0; ik < k; ++ik) {
    for (size_t ic = 0; ic < c; ++ic) dw[ik * c + ic] = static_cast<float>(dot(dy + ik, k, x + ic, c, p.n));
    if (!dbias) continue;
    double sum = 0;
    for (size_t in = 0; in < static_cast<size_t>(p.n); ++in) sum += dy[in * k + ik];
    dbias[ik] = static_cast<float>(sum);
  }
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_cpu_naive = cpu_impl<LinearFwd, linear_fwd>("cpu_naive");
extern const Impl<LinearDgrad> linear_dgrad_cpu_naive = cpu_impl<LinearDgrad, linear_dgrad>("cpu_naive");
extern const Impl<LinearWgrad> linear_wgrad_cpu_naive = cpu_impl<LinearWgrad, linear_wgrad>("cpu_naive");

}  // namespace kiln
