// What the fast softmax_xent kernels share: a row's loss and gradient from its maximum and sums, and the
// mean over the rows in the same launch.
#pragma once

#include <memory>

#include "kernels/common/check.h"
#include "kernels/common/counters.h"
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

// exp of a logit less the largest one. For bf16 logits the fast one, whose error, about 2 + 1.2 |z| units of
// fp32, is far below the rounding of the gradient.
template <class T>
__device__ __forceinline__ float softmax_xent_exp(float z) {
  return sizeof(T) == sizeof(float) ? expf(z) : __expf(z);
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

// The sums of all blocks, by the block that arrives last: summary = {sum_b partial[b,0] / N, sum_b
// partial[b,1]}, in double and in an order that only the numbers of blocks and warps set.
__device__ __forceinline__ void softmax_xent_sum_blocks(int warps, const SoftmaxXentScale& scale,
                                                        const float* partial,           // [blocks,2]
                                                        float* __restrict__ summary) {  // [2]
  __shared__ double s_loss[32], s_correct[32];
  double loss = 0, correct = 0;
#pragma unroll 4
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) {
    const float2 pair = __ldcg(reinterpret_cast<const float2*>(partial) + b);
    loss += pair.x;
    correct += pair.y;
  }
  loss = warp_sum(loss);
  correct = warp_sum(correct);
  if (threadIdx.x % 32 == 0) {
    s_loss[threadIdx.x / 32] = loss;
    s_correct[threadIdx.x / 32] = correct;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const bool has = static_cast<int>(threadIdx.x) < warps;
  loss = warp_sum(has ? s_loss[threadIdx.x] : 0.0);
  correct = warp_sum(has ? s_correct[threadIdx.x] : 0.0);
  if (threadIdx.x != 0) return;
  summary[0] = static_cast<float>(loss * scale.inverse_rows);
  summary[1] = static_cast<float>(correct);
}

// Sums what the threads of a block have of loss and correct rows, then over the blocks: each leaves its sums
// in `partial` and counts itself in `done`, and the last one, which sees all, adds them up. `done` is 0
// before a launch and, wrapping, after it. A block is `warps` whole warps, at most 32; all threads call.
__device__ __forceinline__ void softmax_xent_finish(float loss, float correct, int warps,
                                                    const SoftmaxXentScale& scale,
                                                    float* __restrict__ partial,    // [blocks,2]
                                                    unsigned* __restrict__ done,    // [1]
                                                    float* __restrict__ summary) {  // [2]
  __shared__ float s_loss[32], s_correct[32];
  __shared__ bool s_last;
  loss = warp_sum(loss);
  correct = warp_sum(correct);
  if (threadIdx.x % 32 == 0) {
    s_loss[threadIdx.x / 32] = loss;
    s_correct[threadIdx.x / 32] = correct;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const bool has = static_cast<int>(threadIdx.x) < warps;
    loss = warp_sum(has ? s_loss[threadIdx.x] : 0.0f);
    correct = warp_sum(has ? s_correct[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) {
      if (gridDim.x == 1) {
        summary[0] = loss * scale.inverse_rows;
        summary[1] = correct;
      } else {
        __stcg(reinterpret_cast<float2*>(partial) + blockIdx.x, make_float2(loss, correct));
        __threadfence();  // the sums are seen by whoever sees the count
        s_last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
      }
    }
  }
  if (gridDim.x == 1) return;
  __syncthreads();
  if (!s_last) return;
  __threadfence();
  softmax_xent_sum_blocks(warps, scale, partial, summary);
}

// The plan of a kernel of `blocks` blocks that ends with softmax_xent_finish: `launch(args, partial, done,
// stream)` with everything else captured by value. Workspace: [blocks,2] fp32.
template <class Args, class Launch>
Plan<Args> softmax_xent_plan(int blocks, Launch launch) {
  const size_t bytes = blocks > 1 ? 2 * sizeof(float) * static_cast<size_t>(blocks) : 0;
  const auto counter = blocks > 1 ? zeroed_counters(1) : nullptr;
  return Plan<Args>(bytes, [launch, counter](const Args& args, void* workspace) {
    require_aligned_args(&args, sizeof args);
    return Bound([args, workspace, launch, counter](Stream stream) {
      unsigned* done = counter ? static_cast<unsigned*>(counter->data()) : nullptr;
      launch(args, static_cast<float*>(workspace), done, stream);
    });
  });
}

}  // namespace kiln
