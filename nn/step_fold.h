// step_fold: the running statistics of batchnorms as what a convolution's epilogue multiplies by and adds,
// all of a network's in one launch.
//
//   scale[c] = gamma[c] / sqrt(running_var[c] + eps),
//   shift[c] = beta[c] + (bias[c] - running_mean[c]) * scale[c], with the convolution's bias where it has one
//
// in double, each rounded once.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/common/host_device.h"
#include "kernels/common/impl.h"

namespace kiln {

// One batchnorm.
struct StepFold {
  const float* gamma = nullptr;  // [channels]
  const float* beta = nullptr;   // [channels]
  const float* mean = nullptr;   // [channels], running
  const float* var = nullptr;    // [channels], running
  const float* bias = nullptr;   // [channels] or null
  float* scale = nullptr;        // [channels]
  float* shift = nullptr;        // [channels]
  int channels = 0;
  float eps = 0;

  // scale and shift of channel c.
  KILN_HOST_DEVICE void operator()(int c) const {
    const double factor = gamma[c] / ::sqrt(static_cast<double>(var[c]) + eps);
    scale[c] = static_cast<float>(factor);
    const double before = bias ? bias[c] : 0.0;
    shift[c] = static_cast<float>(beta[c] + (before - mean[c]) * factor);
  }
};

// What a launch folds is fixed here, pointers included; they must be of the launch's device.
Bound bind_step_fold_cpu(const std::vector<StepFold>& folds);
#ifdef KILN_WITH_CUDA
Bound bind_step_fold_cuda(const std::vector<StepFold>& folds);
#endif

}  // namespace kiln
