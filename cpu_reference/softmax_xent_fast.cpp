// softmax_xent on all cores: each thread has a contiguous range of rows. The exponentials of a row are the C
// library's; the loss is summed over the rows in order, in double.
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu_reference/cpu_support.h"
#include "kernels/softmax_xent/softmax_xent.h"

namespace kiln {
namespace {

KILN_CPU_CLONES int first_largest(const float* row, int classes) {
  int best = 0;
  for (int k = 1; k < classes; ++k) {
    if (row[k] > row[best]) best = k;
  }
  return best;
}

KILN_CPU_CLONES void gradient_row(float* __restrict dx, int classes, float inverse_sum, float off_target,
                                  float inverse_rows) {
  for (int k = 0; k < classes; ++k) dx[k] = (dx[k] * inverse_sum - off_target) * inverse_rows;
}

// One row's loss; 1 in *correct where its first largest logit is the label.
float one_row(const SoftmaxXentProblem& p, const float* row, int32_t label, float* dx, float* correct) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  *correct = 0.0f;
  if (label < 0 || label >= p.c) {
    if (dx) std::fill_n(dx, p.c, nan);
    return nan;
  }
  const int best = first_largest(row, p.c);
  float sum = 0, shifted = 0;
  for (int k = 0; k < p.c; ++k) {
    const float z = row[k] - row[best];
    const float e = std::exp(z);
    if (dx) dx[k] = e;
    sum += e;
    shifted += z;
  }
  const float log_sum = std::log(sum);
  float loss = (1.0f - p.smoothing) * (log_sum - (row[label] - row[best]));
  if (p.smoothing > 0) loss += p.smoothing * (log_sum - shifted / static_cast<float>(p.c));
  *correct = best == label && !std::isnan(loss) ? 1.0f : 0.0f;
  if (dx) {
    const float inverse_rows = 1.0f / static_cast<float>(p.n), softmax = dx[label] / sum;
    const float off_target = p.smoothing / static_cast<float>(p.c);
    gradient_row(dx, p.c, 1.0f / sum, off_target, inverse_rows);
    dx[label] = (softmax - off_target - (1.0f - p.smoothing)) * inverse_rows;
  }
  return loss;
}

size_t workspace_bytes(const SoftmaxXentProblem& p) { return sizeof(float) * p.n; }

void rows(const SoftmaxXentProblem& p, const float* x,  // [N,K]
          const int32_t* labels,                        // [N]
          float* row_loss,                              // [N]
          float* summary,                               // [2]
          float* dx,                                    // [N,K] or null
          float* correct) {                             // [N] workspace
  const long long least = std::max(1, 1024 / p.c);      // rows worth a thread
  const long long parts = std::max(1LL, std::min<long long>(cpu_device().threads, p.n / least));
#pragma omp parallel for schedule(static) if (parts > 1)
  for (long long part = 0; part < parts; ++part) {
    for (long long n = p.n * part / parts; n < p.n * (part + 1) / parts; ++n) {
      row_loss[n] = one_row(p, x + n * p.c, labels[n], dx ? dx + n * p.c : nullptr, correct + n);
    }
  }
  double loss = 0, right = 0;
  for (int n = 0; n < p.n; ++n) {
    loss += row_loss[n];
    right += correct[n];
  }
  summary[0] = static_cast<float>(loss / p.n);
  summary[1] = static_cast<float>(right);
}

void fwd(const SoftmaxXentProblem& p, const SoftmaxXentFwd::Args& a, void* workspace) {
  rows(p, f32(a.x), static_cast<const int32_t*>(a.labels), f32(a.row_loss), f32(a.summary), nullptr,
       f32(workspace));
}

void fwd_bwd(const SoftmaxXentProblem& p, const SoftmaxXentFwdBwd::Args& a, void* workspace) {
  rows(p, f32(a.x), static_cast<const int32_t*>(a.labels), f32(a.row_loss), f32(a.summary), f32(a.dx),
       f32(workspace));
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_cpu_fast =
    cpu_impl<SoftmaxXentFwd, workspace_bytes, fwd>("cpu_fast");
extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_cpu_fast =
    cpu_impl<SoftmaxXentFwdBwd, workspace_bytes, fwd_bwd>("cpu_fast");

}  // namespace kiln
