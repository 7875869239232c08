// What the fast softmax_xent kernels share: a row's loss and gradient from its maximum and sums, and the
// two-step mean over the rows.
#pragma once

#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/softmax_xent/softmax_xent.h"

namespace kiln {

// The constants of a problem.
struct SoftmaxXentScale {
  float smoothing;
  float off_target;    // smoothing / K
  float inverse_rows;  // 1 / N
};

inline SoftmaxXentScale softmax_xent_scale(const SoftmaxXentProblem& p) {
  return {p.smoothing, p.smoothing / static_cast<float>(p.c), 1.0f / static_cast<float>(p.n)};
}

// sum = sum_k exp(z[k]), sum_z = sum_k z[k], z[k] = x[k] - max. Without smoothing a logit of -inf does no
// harm.
__device__ __forceinline__ float softmax_xent_loss(float sum, float sum_z, float z_label, int classes,
                                                   const SoftmaxXentScale& scale) {
  const float log_sum = logf(sum);
  float loss = (1.0f - scale.smoothing) * (log_sum - z_label);
  if (scale.smoothing > 0.0f) loss += scale.smoothing * (log_sum - sum_z / static_cast<float>(classes));
  return loss;
}

__device__ __forceinline__ float softmax_xent_gradient(float softmax, bool is_label,
                                                       const SoftmaxXentScale& scale) {
  const float target = scale.off_target + (is_label ? 1.0f - scale.smoothing : 0.0f);
  return (softmax - target) * scale.inverse_rows;
}

// Sums what the threads of a block have of loss and correct rows: to summary where the block is the grid's
// only one, else to partial[blockIdx.x]. A block is `warps` whole warps, at most 32.
__device__ __forceinline__ void softmax_xent_finish(float loss, float correct, int warps,
                                                    const SoftmaxXentScale& scale,
                                                    float* __restrict__ partial,    // [blocks,2]
                                                    float* __restrict__ summary) {  // [2]
  __shared__ float s_loss[32], s_correct[32];
  loss = warp_sum(loss);
  correct = warp_sum(correct);
  if (threadIdx.x % 32 == 0) {
    s_loss[threadIdx.x / 32] = loss;
    s_correct[threadIdx.x / 32] = correct;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const bool has = static_cast<int>(threadIdx.x) < warps;
  loss = warp_sum(has ? s_loss[threadIdx.x] : 0.0f);
  correct = warp_sum(has ? s_correct[threadIdx.x] : 0.0f);
  if (threadIdx.x != 0) return;
  const bool only = gridDim.x == 1;
  float* out = only ? summary : partial + 2 * static_cast<size_t>(blockIdx.x);
  out[0] = only ? loss * scale.inverse_rows : loss;
  out[1] = correct;
}

// summary = {sum of partial losses / N, sum of partial counts}, in a fixed order; enqueued.
void launch_softmax_xent_summary(const SoftmaxXentProblem& p, const float* partial,  // [blocks,2]
                                 int blocks, float* summary,                         // [2]
                                 Stream stream);

}  // namespace kiln
