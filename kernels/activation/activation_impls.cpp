// The tables of relu and add: one line an implementation, best first.
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
