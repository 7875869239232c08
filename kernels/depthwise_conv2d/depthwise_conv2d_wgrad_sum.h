// The second launch of depthwise_conv2d's wgrad: adds the parts that blocks left in the workspace.
#pragma once

#include "kernels/common/device.h"

namespace kiln {

struct DepthwiseWgradSum {
  int parts;     // at least 1
  int elements;  // of a part: R*R*C, and C more for dbias
  int filter;    // R*R*C
};

// partial: [parts, elements]. dw: [filter]. dbias: [elements - filter], null where that is 0. The order of
// summation depends on `parts` alone.
void launch_depthwise_wgrad_sum(const DepthwiseWgradSum&, const float* partial, float* dw, float* dbias,
                                Stream stream);
// The same on compute capability 9.0, behind a kernel that allows it to start (griddepcontrol): it is on its
// way before that one ends, for which it then waits.
void launch_depthwise_wgrad_sum_early(const DepthwiseWgradSum&, const float* partial, float* dw, float* dbias,
                                      Stream stream);

}  // namespace kiln
