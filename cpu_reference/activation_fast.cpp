// relu, relu6, gelu, silu and add on all cores: flat loops that the compiler vectorises, one clone for each
// vector extension.
#include "cpu_reference/activation_lanes.h"
#include "cpu_reference/cpu_support.h"
#include "kernels/activation/activation.h"
#include "kernels/activation/activation_math.h"

namespace kiln {
namespace {

template <class Op>
KILN_CPU_CLONES void fwd_range(const float* x, float* y, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) y[i] = Op::fwd(x[i]);
}

template <class Op>
KILN_CPU_CLONES void bwd_range(const float* dy, const float* saved, float* dx, long long begin,
                               long long end) {
  for (long long i = begin; i < end; ++i) dx[i] = Op::bwd(dy[i], saved[i]);
}

KILN_CPU_CLONES void add_fwd_range(const float* a, const float* b, float* y, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) y[i] = a[i] + b[i];
}

KILN_CPU_CLONES void add_bwd_range(const float* dy, float* da, float* db, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) da[i] = db[i] = dy[i];
}

template <class Pass, class Op>
void fwd(const typename Pass::Problem& p, const typename Pass::Args& a) {
  parallel_ranges(p.elements(),
                  [&](long long begin, long long end) { fwd_range<Op>(f32(a.x), f32(a.y), begin, end); });
}

template <class Pass, class Op>
void bwd(const typename Pass::Problem& p, const typename Pass::Args& a) {
  parallel_ranges(p.elements(), [&](long long begin, long long end) {
    bwd_range<Op>(f32(a.dy), f32(saved_of(a)), f32(a.dx), begin, end);
  });
}

void add_fwd(const AddProblem& p, const AddFwd::Args& a) {
  parallel_ranges(p.elements(), [&](long long begin, long long end) {
    add_fwd_range(f32(a.a), f32(a.b), f32(a.y), begin, end);
  });
}

void add_bwd(const AddProblem& p, const AddBwd::Args& a) {
  parallel_ranges(p.elements(), [&](long long begin, long long end) {
    add_bwd_range(f32(a.dy), f32(a.da), f32(a.db), begin, end);
  });
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_cpu_fast = cpu_impl<ReluFwd, fwd<ReluFwd, Relu>>("cpu_fast");
extern const Impl<ReluBwd> relu_bwd_cpu_fast = cpu_impl<ReluBwd, bwd<ReluBwd, Relu>>("cpu_fast");
extern const Impl<Relu6Fwd> relu6_fwd_cpu_fast = cpu_impl<Relu6Fwd, fwd<Relu6Fwd, Relu6>>("cpu_fast");
extern const Impl<Relu6Bwd> relu6_bwd_cpu_fast = cpu_impl<Relu6Bwd, bwd<Relu6Bwd, Relu6>>("cpu_fast");
extern const Impl<GeluFwd> gelu_fwd_cpu_fast = cpu_impl<GeluFwd, fwd<GeluFwd, GeluLane>>("cpu_fast");
extern const Impl<GeluBwd> gelu_bwd_cpu_fast = cpu_impl<GeluBwd, bwd<GeluBwd, GeluLane>>("cpu_fast");
extern const Impl<SiluFwd> silu_fwd_cpu_fast = cpu_impl<SiluFwd, fwd<SiluFwd, SiluLane>>("cpu_fast");
extern const Impl<SiluBwd> silu_bwd_cpu_fast = cpu_impl<SiluBwd, bwd<SiluBwd, SiluLane>>("cpu_fast");
extern const Impl<AddFwd> add_fwd_cpu_fast = cpu_impl<AddFwd, add_fwd>("cpu_fast");
extern const Impl<AddBwd> add_bwd_cpu_fast = cpu_impl<AddBwd, add_bwd>("cpu_fast");

}  // namespace kiln
