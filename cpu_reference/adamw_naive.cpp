// adamw, the judge: PyTorch's update, one parameter after the other, in double.
#include <algorithm>
#include <cmath>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

void adamw_step(const AdamwProblem& p, const AdamwStep::Args& a) {
  const auto& step = *static_cast<const StepState*>(a.step);
  const float* grad = f32(a.grad);              // [n]
  float* param = f32(a.param);                  // [n]
  float* first_moment = f32(a.first_moment);    // [n]
  float* second_moment = f32(a.second_moment);  // [n]
  if (!step.finite) return;
  const double scale = a.norm ? std::min(1.0f, p.clip / (*f32(a.norm) + 1e-6f)) : 1.0f;
  const double lr = step.lr, b1 = p.beta1, b2 = p.beta2, t = step.step + 1.0;
  const double first_correction = 1 - std::pow(b1, t), second_correction = 1 - std::pow(b2, t);
  for (long long i = 0; i < p.n; ++i) {
    const double g = scale * grad[i];
    const double m = b1 * first_moment[i] + (1 - b1) * g;
    const double v = b2 * second_moment[i] + (1 - b2) * g * g;
    const double decayed = i < p.decayed ? param[i] * (1 - lr * p.weight_decay) : param[i];
    const double step_size = lr * (m / first_correction) / (std::sqrt(v / second_correction) + p.eps);
    first_moment[i] = static_cast<float>(m);
    second_moment[i] = static_cast<float>(v);
    param[i] = static_cast<float>(decayed - step_size);
  }
}

}  // namespace

extern const Impl<AdamwStep> adamw_step_cpu_naive = cpu_impl<AdamwStep, adamw_step>("cpu_naive");

}  // namespace kiln
