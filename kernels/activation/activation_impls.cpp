// The tables of the elementwise ops: one line an implementation, best first.
#include "kernels/activation/activation.h"

namespace kiln {

// clang-format off
KILN_TABLES(ReluFwd,
            (relu_fwd_cpu_fast,
             relu_fwd_cpu_naive),
            (relu_fwd_vectorized,
             relu_fwd_naive
             KILN_CUDNN(relu_fwd_cudnn)))

KILN_TABLES(ReluBwd,
            (relu_bwd_cpu_fast,
             relu_bwd_cpu_naive),
            (relu_bwd_vectorized,
             relu_bwd_naive
             KILN_CUDNN(relu_bwd_cudnn)))

KILN_TABLES(Relu6Fwd,
            (relu6_fwd_cpu_fast,
             relu6_fwd_cpu_naive),
            (relu6_fwd_vectorized,
             relu6_fwd_naive
             KILN_CUDNN(relu6_fwd_cudnn)))

KILN_TABLES(Relu6Bwd,
            (relu6_bwd_cpu_fast,
             relu6_bwd_cpu_naive),
            (relu6_bwd_vectorized,
             relu6_bwd_naive))

KILN_TABLES(GeluFwd,
            (gelu_fwd_cpu_fast,
             gelu_fwd_cpu_naive),
            (gelu_fwd_vectorized,
             gelu_fwd_naive
             KILN_CUDNN(gelu_fwd_cudnn)))

KILN_TABLES(GeluBwd,
            (gelu_bwd_cpu_fast,
             gelu_bwd_cpu_naive),
            (gelu_bwd_vectorized,
             gelu_bwd_naive
             KILN_CUDNN(gelu_bwd_cudnn)))

KILN_TABLES(SiluFwd,
            (silu_fwd_cpu_fast,
             silu_fwd_cpu_naive),
            (silu_fwd_vectorized,
             silu_fwd_naive
             KILN_CUDNN(silu_fwd_cudnn)))

KILN_TABLES(SiluBwd,
            (silu_bwd_cpu_fast,
             silu_bwd_cpu_naive),
            (silu_bwd_vectorized,
             silu_bwd_naive
             KILN_CUDNN(silu_bwd_cudnn)))

KILN_TABLES(AddFwd,
            (add_fwd_cpu_fast,
             add_fwd_cpu_naive),
            (add_fwd_vectorized,
             add_fwd_naive
             KILN_CUDNN(add_fwd_cudnn)))

KILN_TABLES(AddBwd,
            (add_bwd_cpu_fast,
             add_bwd_cpu_naive),
            (add_bwd_vectorized,
             add_bwd_naive))
// clang-format on

}  // namespace kiln
