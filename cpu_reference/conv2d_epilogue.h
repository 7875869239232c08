// The epilogue of conv2d fwd on pixels whose sums are in y, for the fast implementation.
#pragma once

#include "cpu_reference/activation_lanes.h"
#include "cpu_reference/cpu_support.h"
#include "kernels/activation/activation_kind.h"
#include "kernels/conv2d/conv2d.h"

namespace kiln {
namespace {

// y = act(scale * y + bias + residual), Act without branches.
template <class Act>
KILN_CPU_CLONES void conv2d_finish_pixels(const float* scale,     // [K] or null
                                          const float* bias,      // [K] or null
                                          const float* residual,  // [pixels,K] or null
                                          float* y,               // [pixels,K]
                                          int pixels, int K, const Act& act) {
  for (int i = 0; i < pixels; ++i, y += K) {
    if (scale) {
      for (int k = 0; k < K; ++k) y[k] *= scale[k];
    }
    if (bias) {
      for (int k = 0; k < K; ++k) y[k] += bias[k];
    }
    if (residual) {
      for (int k = 0; k < K; ++k) y[k] += residual[k];
      residual += K;
    }
    for (int k = 0; k < K; ++k) y[k] = act(y[k]);
  }
}

struct Conv2dGelu {
  float operator()(float u) const { return GeluLane::fwd(u); }
};
struct Conv2dSilu {
  float operator()(float u) const { return SiluLane::fwd(u); }
};

// The epilogue of the pixels that begin at element `first` of y.
inline void conv2d_finish(const Conv2dProblem& p, const Conv2dFwd::Args& a, size_t first, int pixels) {
  const auto with = [&](const auto& act) {
    conv2d_finish_pixels(p.scale ? f32(a.scale) : nullptr, p.bias ? f32(a.bias) : nullptr,
                         p.residual ? f32(a.residual) + first : nullptr, f32(a.y) + first, pixels, p.k, act);
  };
  if (p.act == ActKind::kGelu) return with(Conv2dGelu());
  if (p.act == ActKind::kSilu) return with(Conv2dSilu());
  with(act_clamp(p.act));
}

}  // namespace
}  // namespace kiln
