// relu and add on all cores: flat loops that the compiler vectorises, one clone for each vector extension.
#include "cpu_reference/cpu_support.h"
#include "kernels/activation/activation.h"

namespace kiln {
namespace {

KILN_CPU_CLONES void relu_fwd_range(const float* x, float* y, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) y[i] = x[i] <= 0 ? 0.0f : x[i];
}

KILN_CPU_CLONES void relu_bwd_range(const float* dy, const float* y, float* dx, long long begin,
                                    long long end) {
  for (long long i = begin; i < end; ++i) dx[i] = y[i] > 0 ? dy[i] : 0.0f;
}

KILN_CPU_CLONES void add_fwd_range(const float* a, const float* b, float* y, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) y[i] = a[i] + b[i];
}

KILN_CPU_CLONES void add_bwd_range(const float* dy, float* da, float* db, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) da[i] = db[i] = dy[i];
}

void relu_fwd(const ReluProblem& p, const ReluFwd::Args& a) {
  parallel_ranges(p.elements(),
                  [&](long long begin, long long end) { relu_fwd_range(f32(a.x), f32(a.y), begin, end); });
}

void relu_bwd(const ReluProblem& p, const ReluBwd::Args& a) {
  parallel_ranges(p.elements(), [&](long long begin, long long end) {
    relu_bwd_range(f32(a.dy), f32(a.y), f32(a.dx), begin, end);
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

extern const Impl<ReluFwd> relu_fwd_cpu_fast = cpu_impl<ReluFwd, relu_fwd>("cpu_fast");
extern const Impl<ReluBwd> relu_bwd_cpu_fast = cpu_impl<ReluBwd, relu_bwd>("cpu_fast");
extern const Impl<AddFwd> add_fwd_cpu_fast = cpu_impl<AddFwd, add_fwd>("cpu_fast");
extern const Impl<AddBwd> add_bwd_cpu_fast = cpu_impl<AddBwd, add_bwd>("cpu_fast");

}  // namespace kiln
