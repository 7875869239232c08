// step_fold (nn/step_fold.h) of many batchnorms:
//
//   scale[c] = gamma[c] / sqrt(var[c] + eps), shift[c] = beta[c] + (bias[c] - mean[c]) * scale[c]
//
// A block has one batchnorm, its threads take channels with the block's stride. The batchnorms are the
// kernel's parameter, 60 a launch, so that nothing is read to find them. No shared memory, deterministic.
// Mirrors nn/step_fold.cpp.
#include <algorithm>

#include "kernels/common/check.h"
#include "nn/step_fold.h"

namespace kiln {
namespace {

constexpr int kFolds = 60, kThreads = 256;

struct FoldList {
  StepFold of[kFolds];
};
static_assert(sizeof(FoldList) <= 4096, "parameters of a kernel");

__global__ __launch_bounds__(kThreads) void step_fold_kernel(const __grid_constant__ FoldList list) {
  const StepFold& fold = list.of[blockIdx.x];
  for (int c = threadIdx.x; c < fold.channels; c += kThreads) fold(c);
}

}  // namespace

Bound bind_step_fold_cuda(const std::vector<StepFold>& folds) {
  return Bound([folds](Stream stream) {
    for (size_t first = 0; first < folds.size(); first += kFolds) {
      const size_t count = std::min<size_t>(kFolds, folds.size() - first);
      FoldList list = {};
      std::copy_n(folds.begin() + static_cast<std::ptrdiff_t>(first), count, list.of);
      step_fold_kernel<<<static_cast<unsigned>(count), kThreads, 0, cuda_stream(stream)>>>(list);
      check_launch("step_fold_kernel");
    }
  });
}

}  // namespace kiln
