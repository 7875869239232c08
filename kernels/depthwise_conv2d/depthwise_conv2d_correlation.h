// dgrad at stride 1 as the forward of dy with the filter turned by 180 degrees and padding R-1-ph, S-1-pw.
#pragma once

#include <functional>
#include <string_view>

#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {

// Launches y = correlation of x with w; x, w, bias and y are as in DepthwiseConv2dFwd::Args.
using DepthwiseCorrelation = std::function<void(const DepthwiseConv2dFwd::Args&, Stream)>;

// turned: w is read turned by 180 degrees. config: see depthwise_rows_of_config.
DepthwiseCorrelation make_depthwise_correlation(const DepthwiseConv2dProblem&, bool turned, const Device&,
                                                std::string_view config);

// The fwd problem that dgrad of p at stride 1 is.
inline DepthwiseConv2dProblem depthwise_turned(DepthwiseConv2dProblem p) {
  const int height = p.p(), width = p.q();
  p.h = height;
  p.w = width;
  p.pad_h = p.r - 1 - p.pad_h;
  p.pad_w = p.s - 1 - p.pad_w;
  p.bias = false;
  return p;
}

// dgrad's plan from the plan of that problem, which reads w turned.
inline Plan<DepthwiseConv2dDgrad::Args> plan_depthwise_turned(const Plan<DepthwiseConv2dFwd::Args>& fwd) {
  using Args = DepthwiseConv2dDgrad::Args;
  return Plan<Args>(fwd.workspace_bytes(), [fwd](const Args& a, void* workspace) {
    return fwd.bind({.x = a.dy, .w = a.w, .bias = nullptr, .y = a.dx}, workspace);
  });
}

}  // namespace kiln
