// grad_norm, the judge: one sum in double.
#include <cmath>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

void grad_norm_fwd(const GradNormProblem& p, const GradNorm::Args& a) {
  const float* grad = f32(a.grad);  // [n]
  double sum = 0;
  for (long long i = 0; i < p.n; ++i) sum += static_cast<double>(grad[i]) * grad[i];
  *f32(a.norm) = static_cast<float>(std::sqrt(sum));
}

}  // namespace

extern const Impl<GradNorm> grad_norm_fwd_cpu_naive = cpu_impl<GradNorm, grad_norm_fwd>("cpu_naive");

}  // namespace kiln
