// Activations that are known at run time: ActKind as functions.
#pragma once

#include <limits>

#include "kernels/activation/activation_math.h"
#include "kernels/common/act_kind.h"
#include "kernels/common/host_device.h"

namespace kiln {

template <class F>
KILN_HOST_DEVICE inline F activate(F u, ActKind act) {
  if (act == ActKind::kRelu) return relu(u);
  if (act == ActKind::kRelu6) return relu6(u);
  if (act == ActKind::kGelu) return gelu(u);
  if (act == ActKind::kSilu) return silu(u);
  return u;
}

// No activation, relu and relu6 as two selects: a branch an element would cost more. NaN passes; -0 of relu
// and relu6 becomes +0.
struct ActClamp {
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  KILN_HOST_DEVICE float operator()(float u) const {
    const float raised = u <= low ? low : u;
    return raised >= high ? high : raised;
  }
};

inline ActClamp act_clamp(ActKind act) {
  ActClamp clamp;
  if (act == ActKind::kRelu || act == ActKind::kRelu6) clamp.low = 0;
  if (act == ActKind::kRelu6) clamp.high = 6;
  return clamp;
}

}  // namespace kiln
