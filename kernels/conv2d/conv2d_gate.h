// Which elements of dgrad's result stay when it goes back through relu or relu6.
#pragma once

#include <limits>

#include "kernels/common/act_kind.h"
#include "kernels/common/host_device.h"

namespace kiln {

// Of an output of the activation; as the activation's own backward pass, 0 at the kinks and for NaN.
struct Conv2dGate {
  float high = std::numeric_limits<float>::quiet_NaN();  // NaN: no bound, infinity passes

  KILN_HOST_DEVICE bool passes(float x) const { return x > 0.0f && !(x >= high); }
};

inline Conv2dGate conv2d_gate(ActKind act) {
  Conv2dGate gate;
  if (act == ActKind::kRelu6) gate.high = 6;
  return gate;
}

}  // namespace kiln
