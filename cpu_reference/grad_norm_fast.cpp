// grad_norm on all cores: chunks of fixed size, summed in double in 16 lanes each, then chunk after chunk:
// the same bits for any number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

constexpr long long kChunk = 1 << 16;

KILN_CPU_CLONES double square_sum(const float* values, long long count) {
  constexpr int kLanes = 16;
  double lanes[kLanes] = {};
  const long long whole = count / kLanes * kLanes;
  for (long long i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(values[i + j]) * values[i + j];
  }
  double sum = 0;
  for (long long i = whole; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

void grad_norm_fwd(const GradNormProblem& p, const GradNorm::Args& a) {
  const float* grad = f32(a.grad);  // [n]
  const long long chunks = (p.n + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(chunks));
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (long long i = 0; i < chunks; ++i) {
    sums[static_cast<size_t>(i)] = square_sum(grad + i * kChunk, std::min(kChunk, p.n - i * kChunk));
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  *f32(a.norm) = static_cast<float>(std::sqrt(total));
}

}  // namespace

extern const Impl<GradNorm> grad_norm_fwd_cpu_fast = cpu_impl<GradNorm, grad_norm_fwd>("cpu_fast");

}  // namespace kiln
