// adamw on all cores: flat loops over ranges of the slab (update_ranges.h), in fp32.
#include "cpu_reference/update_ranges.h"

namespace kiln {
namespace {

using Rule = AdamwRule<float>;

KILN_CPU_CLONES void adamw_range(const Rule& rule, const float* grad, float* param, float* first_moment,
                                 float* second_moment, bool decays, long long begin, long long end) {
  update_range<Rule>(rule, grad, param, {first_moment, second_moment}, decays, begin, end);
}

void adamw_step(const AdamwProblem& p, const AdamwStep::Args& a) {
  const auto& step = *static_cast<const StepState*>(a.step);
  if (!step.finite) return;
  const Rule rule = Rule::make(p, step, f32(a.norm));
  update_slab(p, [&](bool decays, long long begin, long long end) {
    adamw_range(rule, f32(a.grad), f32(a.param), f32(a.first_moment), f32(a.second_moment), decays, begin,
                end);
  });
}

}  // namespace

extern const Impl<AdamwStep> adamw_step_cpu_fast = cpu_impl<AdamwStep, adamw_step>("cpu_fast");

}  // namespace kiln
