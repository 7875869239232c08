// The tables of depthwise_conv2d: one line an implementation, best first.
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {

// clang-format off
KILN_TABLES(DepthwiseConv2dFwd,
            (depthwise_conv2d_fwd_cpu_fast,
             depthwise_conv2d_fwd_cpu_naive),
            (depthwise_conv2d_fwd_tma_rows,
             depthwise_conv2d_fwd_tma_tile,
             depthwise_conv2d_fwd_sliding_window,
             depthwise_conv2d_fwd_naive))

KILN_TABLES(DepthwiseConv2dDgrad,
            (depthwise_conv2d_dgrad_cpu_fast,
             depthwise_conv2d_dgrad_cpu_naive),
            (depthwise_conv2d_dgrad_tma_rows,
             depthwise_conv2d_dgrad_tma_tile,
             depthwise_conv2d_dgrad_sliding_window,
             depthwise_conv2d_dgrad_naive))

KILN_TABLES(DepthwiseConv2dWgrad,
            (depthwise_conv2d_wgrad_cpu_fast,
             depthwise_conv2d_wgrad_cpu_naive),
            (depthwise_conv2d_wgrad_tma_rows,
             depthwise_conv2d_wgrad_tma_tile,
             depthwise_conv2d_wgrad_two_stage,
             depthwise_conv2d_wgrad_naive))
// clang-format on

}  // namespace kiln
