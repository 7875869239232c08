// The tables of max_pool2d and global_avg_pool: one line an implementation, best first. cuDNN's max-pool
// backward wants x and y, which this pass does not read, so it has no line here.
#include "kernels/pool2d/pool2d.h"

namespace kiln {

// clang-format off
KILN_TABLES(MaxPool2dFwd,
            (max_pool2d_fwd_cpu_fast,
             max_pool2d_fwd_cpu_naive),
            (max_pool2d_fwd_vectorized,
             max_pool2d_fwd_naive
             KILN_CUDNN(max_pool2d_fwd_cudnn)))

KILN_TABLES(MaxPool2dBwd,
            (max_pool2d_bwd_cpu_fast,
             max_pool2d_bwd_cpu_naive),
            (max_pool2d_bwd_vectorized,
             max_pool2d_bwd_naive))

KILN_TABLES(GlobalAvgPoolFwd,
            (global_avg_pool_fwd_cpu_fast,
             global_avg_pool_fwd_cpu_naive),
            (global_avg_pool_fwd_vectorized,
             global_avg_pool_fwd_naive
             KILN_CUDNN(global_avg_pool_fwd_cudnn)))

KILN_TABLES(GlobalAvgPoolBwd,
            (global_avg_pool_bwd_cpu_fast,
             global_avg_pool_bwd_cpu_naive),
            (global_avg_pool_bwd_vectorized,
             global_avg_pool_bwd_naive
             KILN_CUDNN(global_avg_pool_bwd_cudnn)))
// clang-format on

}  // namespace kiln
