// The fp32 arithmetic that every batchnorm implementation shares.
//
// backward recomputes the activation's input u from x; where relu or relu6 follows it keeps or drops dy by
// it. Two implementations that round u differently would disagree on the sign of a value near 0 and so on a
// whole dy; hence one explicit sequence of operations, the same bits on CPU and GPU, used by all forwards and
// backwards:
//
//   scale = gamma * rstd,  pre = fma(x - mean, scale, beta),  u = pre or pre + residual
//
// The mean is subtracted first: x - mean is exact for x near the mean, where x * scale + shift would cancel.
#pragma once

#include <cmath>

#include "kernels/activation/activation_math.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/common/host_device.h"

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

KILN_HOST_DEVICE inline float batchnorm_join(float pre, float residual) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(pre, residual);
#else
  return pre + residual;
#endif
}

// No activation, relu and relu6 are one clamp: between low and high y is u and the gradient passes; at the
// ends and beyond y is the end and none does. NaN stays NaN and passes. Written to compile to selects: a
// branch an element would cost more than both comparisons.
struct BatchnormClamp {
  float low, high;
  KILN_HOST_DEVICE float activate(float u) const {
    const float raised = u <= low ? low : u;
    return raised >= high ? high : raised;
  }
  KILN_HOST_DEVICE bool passes(float u) const { return !((u <= low) | (u >= high)); }
};

inline BatchnormClamp batchnorm_clamp(BatchnormAct act) {
  if (act == BatchnormAct::kNone) return {-INFINITY, INFINITY};
  return {0.0f, act == BatchnormAct::kRelu6 ? 6.0f : INFINITY};
}

// gelu and silu, which have a slope everywhere.
KILN_HOST_DEVICE inline bool batchnorm_is_smooth(BatchnormAct act) {
  return act == BatchnormAct::kGelu || act == BatchnormAct::kSilu;
}

KILN_HOST_DEVICE inline float batchnorm_rstd(float var, float eps) { return 1.0f / sqrtf(var + eps); }

// The maximum of a window and its position: the first of equals; NaN wins, of several the last (PyTorch's).
struct BatchnormMaximum {
  float value = -INFINITY;
  int position = 0;
  KILN_HOST_DEVICE void take(float candidate, int at) {
    if (candidate > value || candidate != candidate) {
      value = candidate;
      position = at;
    }
  }
};

// A window: its four pixels in [N,H,W] in (r,s) order, and itself in [N,H/2,W/2].
struct BatchnormWindow {
  long long pixel[4];
  long long out;
};
KILN_HOST_DEVICE inline BatchnormWindow batchnorm_window(int height, int width, int n, int p, int q) {
  const long long first = (1LL * n * height + 2 * p) * width + 2 * q;
  return {{first, first + 1, first + width, first + width + 1},
          (1LL * n * (height / 2) + p) * (width / 2) + q};
}
inline BatchnormWindow batchnorm_window(const BatchnormProblem& problem, int n, int p, int q) {
  return batchnorm_window(problem.h, problem.w, n, p, q);
}

// For the naive implementations: y of the value that double arithmetic gives. Where there is a kink, the fp32
// u decides on which side the value lies, so that y is within the clamp exactly where backward lets the
// gradient pass.
KILN_HOST_DEVICE inline double batchnorm_activate_exact(double value, float u, BatchnormAct act,
                                                        BatchnormClamp clamp) {
  if (act == BatchnormAct::kGelu) return gelu(value);
  if (act == BatchnormAct::kSilu) return silu(value);
  const double low = clamp.low, high = clamp.high;
  if (!clamp.passes(u)) return clamp.activate(u);
  return value <= low || value >= high ? static_cast<double>(u) : value;
}

// The same for the gradient to u.
KILN_HOST_DEVICE inline double batchnorm_gradient_exact(double dy, double value, float u, BatchnormAct act,
                                                        BatchnormClamp clamp) {
  if (act == BatchnormAct::kGelu) return dy * gelu_slope(value);
  if (act == BatchnormAct::kSilu) return dy * silu_slope(value);
  return clamp.passes(u) ? dy : 0.0;
}

// The weight of the batch's variance in the running variance: momentum, made unbiased.
inline double batchnorm_unbiased(long long per_channel) {
  return per_channel > 1 ? static_cast<double>(per_channel) / static_cast<double>(per_channel - 1) : 1.0;
}

}  // namespace kiln
