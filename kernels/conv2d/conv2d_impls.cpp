// The tables of conv2d: one line an implementation, best first.
#include "kernels/conv2d/conv2d.h"

namespace kiln {

// clang-format off
KILN_TABLES(Conv2dFwd,
            (conv2d_fwd_cpu_fast,
             conv2d_fwd_cpu_naive),
            (conv2d_fwd_direct,
             conv2d_fwd_deep,
             conv2d_fwd_pointwise,
             conv2d_fwd_wgmma_pixel,
             conv2d_fwd_wgmma_halo,
             conv2d_fwd_wgmma,
             conv2d_fwd_few_channels,
             conv2d_fwd_mma_sync,
             conv2d_fwd_register_tma,
             conv2d_fwd_register_tile,
             conv2d_fwd_smem_tile,
             conv2d_fwd_naive
             KILN_CUDNN(conv2d_fwd_cudnn)))

KILN_TABLES(Conv2dDgrad,
            (conv2d_dgrad_cpu_fast,
             conv2d_dgrad_cpu_naive),
            (conv2d_dgrad_direct,
             conv2d_dgrad_slab,
             conv2d_dgrad_deep,
             conv2d_dgrad_pointwise,
             conv2d_dgrad_wgmma_pixel,
             conv2d_dgrad_wgmma_halo,
             conv2d_dgrad_wgmma,
             conv2d_dgrad_wgmma_parity,
             conv2d_dgrad_few_channels,
             conv2d_dgrad_mma_sync,
             conv2d_dgrad_register_tma,
             conv2d_dgrad_register_tile,
             conv2d_dgrad_smem_tile,
             conv2d_dgrad_naive
             KILN_CUDNN(conv2d_dgrad_cudnn)))

KILN_TABLES(Conv2dWgrad,
            (conv2d_wgrad_cpu_fast,
             conv2d_wgrad_cpu_naive),
            (conv2d_wgrad_stream,
             conv2d_wgrad_wgmma_halo,
             conv2d_wgrad_wgmma,
             conv2d_wgrad_few_channels,
             conv2d_wgrad_mma_sync,
             conv2d_wgrad_register_tma,
             conv2d_wgrad_register_tile,
             conv2d_wgrad_smem_tile,
             conv2d_wgrad_naive
             KILN_CUDNN(conv2d_wgrad_cudnn)))
// clang-format on

}  // namespace kiln
