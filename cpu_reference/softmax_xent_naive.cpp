// softmax_xent, the judge: one row at a time, double sums.
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu_reference/cpu_support.h"
#include "kernels/softmax_xent/softmax_xent.h"

namespace kiln {
namespace {

void rows(const SoftmaxXentProblem& p, const float* x,  // [N,K]
          const int32_t* labels,                        // [N]
          float* row_loss,                              // [N]
          float* summary,                               // [2]
          float* dx) {                                  // [N,K] or null
  const double nan = std::numeric_limits<double>::quiet_NaN();
  double total = 0;
  long long correct = 0;
  for (long long n = 0; n < p.n; ++n) {
    const float* row = x + n * p.c;
    const int32_t label = labels[n];
    const bool valid = label >= 0 && label < p.c;
    int best = 0;
    for (int k = 1; k < p.c; ++k) {
      if (row[k] > row[best]) best = k;
    }
    double sum = 0, shifted = 0;
    for (int k = 0; k < p.c; ++k) {
      sum += std::exp(static_cast<double>(row[k]) - row[best]);
      shifted += static_cast<double>(row[k]) - row[best];
    }
    double loss = nan;
    if (valid) {
      loss = std::log(sum) - (1.0 - p.smoothing) * (static_cast<double>(row[label]) - row[best]);
      if (p.smoothing > 0) loss -= p.smoothing * shifted / p.c;  // where it is 0, logits of -inf are no harm
    }
    row_loss[n] = static_cast<float>(loss);
    total += loss;
    if (best == label && !std::isnan(loss)) ++correct;
    if (dx == nullptr) continue;
    for (int k = 0; k < p.c; ++k) {
      const double target = p.smoothing / static_cast<double>(p.c) + (k == label ? 1.0 - p.smoothing : 0.0);
      const double softmax = std::exp(static_cast<double>(row[k]) - row[best]) / sum;
      dx[n * p.c + k] = static_cast<float>(valid ? (softmax - target) / p.n : nan);
    }
  }
  summary[0] = static_cast<float>(total / p.n);
  summary[1] = static_cast<float>(correct);
}

void fwd(const SoftmaxXentProblem& p, const SoftmaxXentFwd::Args& a) {
  rows(p, f32(a.x), static_cast<const int32_t*>(a.labels), f32(a.row_loss), f32(a.summary), nullptr);
}

void fwd_bwd(const SoftmaxXentProblem& p, const SoftmaxXentFwdBwd::Args& a) {
  rows(p, f32(a.x), static_cast<const int32_t*>(a.labels), f32(a.row_loss), f32(a.summary), f32(a.dx));
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_cpu_naive = cpu_impl<SoftmaxXentFwd, fwd>("cpu_naive");
extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_cpu_naive =
    cpu_impl<SoftmaxXentFwdBwd, fwd_bwd>("cpu_naive");

}  // namespace kiln
