// The tables of the pooling ops: one line an implementation, best first. cuDNN's backward of a maximum wants
// x and y, which these passes do not read, so it has no line here.
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

KILN_TABLES(AvgPool2dFwd,
            (avg_pool2d_fwd_cpu_fast,
             avg_pool2d_fwd_cpu_naive),
            (avg_pool2d_fwd_vectorized,
             avg_pool2d_fwd_naive
             KILN_CUDNN(avg_pool2d_fwd_cudnn)))

KILN_TABLES(AvgPool2dBwd,
            (avg_pool2d_bwd_cpu_fast,
             avg_pool2d_bwd_cpu_naive),
            (avg_pool2d_bwd_vectorized,
             avg_pool2d_bwd_naive
             KILN_CUDNN(avg_pool2d_bwd_cudnn)))

KILN_TABLES(GlobalMaxPoolFwd,
            (global_max_pool_fwd_cpu_fast,
             global_max_pool_fwd_cpu_naive),
            (global_max_pool_fwd_vectorized,
             global_max_pool_fwd_naive
             KILN_CUDNN(global_max_pool_fwd_cudnn)))

KILN_TABLES(GlobalMaxPoolBwd,
            (global_max_pool_bwd_cpu_fast,
             global_max_pool_bwd_cpu_naive),
            (global_max_pool_bwd_vectorized,
             global_max_pool_bwd_naive))

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
