// sgd, the judge: PyTorch's update, one parameter after the other, in double.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

void sgd_step(const SgdProblem& p, const SgdStep::Args& a) {
  const auto& step = *static_cast<const StepState*>(a.step);
  const float* grad = f32(a.grad);    // [n]
  float* param = f32(a.param);        // [n]
  float* velocity = f32(a.velocity);  // [n]
  if (!step.finite) return;
  const double scale = a.norm ? std::min(1.0f, p.clip / (*f32(a.norm) + 1e-6f)) : 1.0f;
  for (long long i = 0; i < p.n; ++i) {
    const double w = param[i];
    const double g = scale * grad[i] + (i < p.decayed ? static_cast<double>(p.weight_decay) * w : 0.0);
    const double v = static_cast<double>(p.momentum) * velocity[i] + g;
    const double direction = p.nesterov ? g + static_cast<double>(p.momentum) * v : v;
    velocity[i] = static_cast<float>(v);
    param[i] = static_cast<float>(w - static_cast<double>(step.lr) * direction);
  }
}

}  // namespace

extern const Impl<SgdStep> sgd_step_cpu_naive = cpu_impl<SgdStep, sgd_step>("cpu_naive");

}  // namespace kiln
