// sgd on all cores: flat loops over ranges of the slab (update_ranges.h), in fp32.
#include "cpu_reference/update_ranges.h"

namespace kiln {
namespace {

using Rule = SgdRule<float>;

KILN_CPU_CLONES void sgd_range(const Rule& rule, const float* grad, float* param, float* velocity,
                               bool decays, long long begin, long long end) {
  update_range<Rule>(rule, grad, param, {velocity}, decays, begin, end);
}

void sgd_step(const SgdProblem& p, const SgdStep::Args& a) {
  const auto& step = *static_cast<const StepState*>(a.step);
  if (!step.finite) return;
  const Rule rule = Rule::make(p, step, f32(a.norm));
  update_slab(p, [&](bool decays, long long begin, long long end) {
    sgd_range(rule, f32(a.grad), f32(a.param), f32(a.velocity), decays, begin, end);
  });
}

}  // namespace

extern const Impl<SgdStep> sgd_step_cpu_fast = cpu_impl<SgdStep, sgd_step>("cpu_fast");

}  // namespace kiln
