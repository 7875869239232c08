// What fwd_train kernels of one launch write besides y, and what that takes.
#pragma once

#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"

namespace kiln {

struct TrainStatistics {
  float* running_mean;  // [C]
  float* running_var;   // [C]
  float* saved_mean;    // [C]
  float* saved_rstd;    // [C]
  float eps, momentum, unbiased;

  __device__ __forceinline__ void write(int c, float mean, float var, float rstd) const {
    saved_mean[c] = mean;
    saved_rstd[c] = rstd;
    running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * mean;
    running_var[c] = (1.0f - momentum) * running_var[c] + momentum * (var * unbiased);
  }
};

inline TrainStatistics train_statistics(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a) {
  return {.running_mean = static_cast<float*>(a.running_mean),
          .running_var = static_cast<float*>(a.running_var),
          .saved_mean = static_cast<float*>(a.saved_mean),
          .saved_rstd = static_cast<float*>(a.saved_rstd),
          .eps = p.eps,
          .momentum = p.momentum,
          .unbiased = static_cast<float>(batchnorm_unbiased(p.per_channel()))};
}

}  // namespace kiln
