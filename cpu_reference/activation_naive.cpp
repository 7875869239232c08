// relu, relu6, gelu, silu and add, the judge: one plain loop each, in double.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/activation/activation.h"
#include "kernels/activation/activation_math.h"

namespace kiln {
namespace {

template <class Pass, class Op>
void fwd(const typename Pass::Problem& p, const typename Pass::Args& a) {
  const float* x = f32(a.x);  // [N,H,W,C]
  float* y = f32(a.y);        // [N,H,W,C]
  for (long long i = 0; i < p.elements(); ++i) {
    y[i] = static_cast<float>(Op::fwd(static_cast<double>(x[i])));
  }
}

template <class Pass, class Op>
void bwd(const typename Pass::Problem& p, const typename Pass::Args& a) {
  const float* dy = f32(a.dy);            // [N,H,W,C]
  const float* saved = f32(saved_of(a));  // [N,H,W,C], y or x
  float* dx = f32(a.dx);                  // [N,H,W,C]
  for (long long i = 0; i < p.elements(); ++i) {
    dx[i] = static_cast<float>(Op::bwd(static_cast<double>(dy[i]), static_cast<double>(saved[i])));
  }
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

extern const Impl<ReluFwd> relu_fwd_cpu_naive = cpu_impl<ReluFwd, fwd<ReluFwd, Relu>>("cpu_naive");
extern const Impl<ReluBwd> relu_bwd_cpu_naive = cpu_impl<ReluBwd, bwd<ReluBwd, Relu>>("cpu_naive");
extern const Impl<Relu6Fwd> relu6_fwd_cpu_naive = cpu_impl<Relu6Fwd, fwd<Relu6Fwd, Relu6>>("cpu_naive");
extern const Impl<Relu6Bwd> relu6_bwd_cpu_naive = cpu_impl<Relu6Bwd, bwd<Relu6Bwd, Relu6>>("cpu_naive");
extern const Impl<GeluFwd> gelu_fwd_cpu_naive = cpu_impl<GeluFwd, fwd<GeluFwd, Gelu>>("cpu_naive");
extern const Impl<GeluBwd> gelu_bwd_cpu_naive = cpu_impl<GeluBwd, bwd<GeluBwd, Gelu>>("cpu_naive");
extern const Impl<SiluFwd> silu_fwd_cpu_naive = cpu_impl<SiluFwd, fwd<SiluFwd, Silu>>("cpu_naive");
extern const Impl<SiluBwd> silu_bwd_cpu_naive = cpu_impl<SiluBwd, bwd<SiluBwd, Silu>>("cpu_naive");
extern const Impl<AddFwd> add_fwd_cpu_naive = cpu_impl<AddFwd, add_fwd>("cpu_naive");
extern const Impl<AddBwd> add_bwd_cpu_naive = cpu_impl<AddBwd, add_bwd>("cpu_naive");

}  // namespace kiln
