// sgd on all cores: the slab is cut at the end of the decayed parameters, each part is one flat loop that the
// compiler vectorises, one clone for each vector extension.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

struct Rates {
  float lr, momentum, weight_decay;
};

KILN_CPU_CLONES void update_range(const float* grad, float* param, float* velocity, Rates r, bool nesterov,
                                  long long begin, long long end) {
  // Both rules are direction = a * g + b * v: plain SGD 0, 1; Nesterov 1, momentum.
  const float a = nesterov ? 1.0f : 0.0f, b = nesterov ? r.momentum : 1.0f;
  for (long long i = begin; i < end; ++i) {
    const float g = grad[i] + r.weight_decay * param[i];
    const float v = r.momentum * velocity[i] + g;
    velocity[i] = v;
    param[i] -= r.lr * (a * g + b * v);
  }
}

void sgd_step(const SgdProblem& p, const SgdStep::Args& a) {
  const auto& step = *static_cast<const StepState*>(a.step);
  if (!step.finite) return;
  parallel_ranges(p.n, [&](long long begin, long long end) {
    const long long cut = std::clamp(p.decayed, begin, end);
    const auto update = [&](float weight_decay, long long from, long long to) {
      update_range(f32(a.grad), f32(a.param), f32(a.velocity), {step.lr, p.momentum, weight_decay},
                   p.nesterov, from, to);
    };
    update(p.weight_decay, begin, cut);
    update(0, cut, end);
  });
}

}  // namespace

extern const Impl<SgdStep> sgd_step_cpu_fast = cpu_impl<SgdStep, sgd_step>("cpu_fast");

}  // namespace kiln
