// The launcher that fwd and dgrad at stride 1 share: dgrad at stride 1 is the forward of dy with the filter
// turned by 180 degrees and padding R-1-ph, S-1-pw.
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

}  // namespace kiln
