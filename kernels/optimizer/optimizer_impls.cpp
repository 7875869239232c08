// The tables of sgd, adamw and grad_norm: one line an implementation, best first.
#include "kernels/optimizer/optimizer.h"

namespace kiln {

// clang-format off
KILN_TABLES(SgdStep,
            (sgd_step_cpu_fast,
             sgd_step_cpu_naive),
            (sgd_step_vectorized,
             sgd_step_naive))

KILN_TABLES(AdamwStep,
            (adamw_step_cpu_fast,
             adamw_step_cpu_naive),
            (adamw_step_vectorized,
             adamw_step_naive))

KILN_TABLES(GradNorm,
            (grad_norm_fwd_cpu_fast,
             grad_norm_fwd_cpu_naive),
            (grad_norm_fwd_two_stage,
             grad_norm_fwd_naive))
// clang-format on

}  // namespace kiln
