// softmax_xent, the last stage: summary = {sum_b partial[b,0] / N, sum_b partial[b,1]}.
//
// One block; a thread adds the partials b = threadIdx, threadIdx + kThreads, ..., then the block adds up in a
// tree, all in double. Shared memory: 16 doubles. Deterministic.
#include "kernels/common/check.h"
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void softmax_xent_summary_kernel(
    const float* __restrict__ partial,  // [blocks,2]
    int blocks, int rows,
    float* __restrict__ summary) {  // [2]
  __shared__ double s_loss[kThreads / 32], s_correct[kThreads / 32];
  double loss = 0, correct = 0;
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kThreads) {
    const auto pair = Vec<float, 2>::load(partial + 2 * static_cast<size_t>(b));
    loss += pair[0];
    correct += pair[1];
  }
  loss = block_sum<kThreads>(loss, s_loss);
  correct = block_sum<kThreads>(correct, s_correct);
  if (threadIdx.x == 0) {
    summary[0] = static_cast<float>(loss / rows);
    summary[1] = static_cast<float>(correct);
  }
}

}  // namespace

void launch_softmax_xent_summary(const SoftmaxXentProblem& p, const float* partial, int blocks,
                                 float* summary, Stream stream) {
  softmax_xent_summary_kernel<<<1, kThreads, 0, cuda_stream(stream)>>>(partial, blocks, p.n, summary);
  check_launch("softmax_xent_summary_kernel");
}

}  // namespace kiln
