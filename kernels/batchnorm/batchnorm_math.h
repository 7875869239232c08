// The fp32 arithmetic that every batchnorm implementation shares.
//
// backward recomputes the ReLU's input from x and keeps dy where it is positive. Two implementations that
// round that value differently would disagree on the sign of a value near 0 and so on a whole dy; hence one
// explicit sequence of operations, the same bits on CPU and GPU, used by all forwards and backwards:
//
//   scale = gamma * rstd,  pre = fma(x - mean, scale, beta)
//
// The mean is subtracted first: x - mean is exact for x near the mean, where x * scale + shift would cancel.
#pragma once

#include <cmath>

#include "kernels/common/philox.h"  // KILN_HOST_DEVICE

namespace kiln {

KILN_HOST_DEVICE inline float batchnorm_scale(float gamma, float rstd) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(gamma, rstd);
#else
  return gamma * rstd;
#endif
}

// The activation's input; centred is batchnorm_centre(x, mean).
KILN_HOST_DEVICE inline float batchnorm_pre(float centred, float scale, float beta) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(centred, scale, beta);
#else
  return std::fmaf(centred, scale, beta);
#endif
}

KILN_HOST_DEVICE inline float batchnorm_centre(float x, float mean) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(x, mean);
#else
  return x - mean;
#endif
}

// y of pre: identity or ReLU (NaN stays).
KILN_HOST_DEVICE inline float batchnorm_activate(float pre, bool relu) {
  return relu && pre <= 0.0f ? 0.0f : pre;
}

// True where the gradient passes the activation.
KILN_HOST_DEVICE inline bool batchnorm_passes(float pre, bool relu) { return !relu || pre > 0.0f; }

KILN_HOST_DEVICE inline float batchnorm_rstd(float var, float eps) { return 1.0f / sqrtf(var + eps); }

// For the naive implementations: the value from double arithmetic, the ReLU's decision from pre, so that y >
// 0 exactly where backward lets the gradient pass.
KILN_HOST_DEVICE inline double batchnorm_activate_exact(double value, float pre, bool relu) {
  if (!relu) return value;
  if (pre <= 0.0f) return 0.0;
  return value <= 0.0 ? static_cast<double>(pre) : value;
}

// The weight of the batch's variance in the running variance: momentum, made unbiased.
inline double batchnorm_unbiased(long long per_channel) {
  return per_channel > 1 ? static_cast<double>(per_channel) / static_cast<double>(per_channel - 1) : 1.0;
}

}  // namespace kiln
