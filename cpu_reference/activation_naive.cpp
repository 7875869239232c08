// relu and add, the judge: one plain loop each.
#include <algorithm>
#include <cmath>

#include "cpu_reference/cpu_support.h"
#include "kernels/activation/activation.h"

namespace kiln {
namespace {

void relu_fwd(const ReluProblem& p, const ReluFwd::Args& a) {
  const float* x = f32(a.x);  // [N,H,W,C]
  float* y = f32(a.y);        // [N,H,W,C]
  for (long long i = 0; i < p.elements(); ++i) y[i] = x[i] > 0 || std::isnan(x[i]) ? x[i] : 0.0f;
}

void relu_bwd(const ReluProblem& p, const ReluBwd::Args& a) {
  const float* dy = f32(a.dy);  // [N,H,W,C]
  const float* y = f32(a.y);    // [N,H,W,C]
  float* dx = f32(a.dx);        // [N,H,W,C]
  for (long long i = 0; i < p.elements(); ++i) dx[i] = y[i] > 0 ? dy[i] : 0.0f;
}

void add_fwd(const AddProblem& p, const AddFwd::Args& args) {
  const float* a = f32(args.a);  // [N,H,W,C]
  const float* b = f32(args.b);  // [N,H,W,C]
  float* y = f32(args.y);        // [N,H,W,C]
  for (long long i = 0; i < p.elements(); ++i) y[i] = a[i] + b[i];
}

void add_bwd(const AddProblem& p, const AddBwd::Args& args) {
  const float* dy = f32(args.dy);  // [N,H,W,C]
  std::copy_n(dy, p.elements(), f32(args.da));
  std::copy_n(dy, p.elements(), f32(args.db));
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_cpu_naive = cpu_impl<ReluFwd, relu_fwd>("cpu_naive");
extern const Impl<ReluBwd> relu_bwd_cpu_naive = cpu_impl<ReluBwd, relu_bwd>("cpu_naive");
extern const Impl<AddFwd> add_fwd_cpu_naive = cpu_impl<AddFwd, add_fwd>("cpu_naive");
extern const Impl<AddBwd> add_bwd_cpu_naive = cpu_impl<AddBwd, add_bwd>("cpu_naive");

}  // namespace kiln
