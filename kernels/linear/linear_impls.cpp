// The tables of linear: one line an implementation, best first.
#include "kernels/linear/linear.h"

namespace kiln {

// clang-format off
KILN_TABLES(LinearFwd,
            (linear_fwd_cpu_fast,
             linear_fwd_cpu_naive),
            (linear_fwd_wgmma,
             linear_fwd_few_outputs,
             linear_fwd_mma_sync,
             linear_fwd_smem_tile,
             linear_fwd_naive
             KILN_CUBLAS(linear_fwd_cublas)))

KILN_TABLES(LinearDgrad,
            (linear_dgrad_cpu_fast,
             linear_dgrad_cpu_naive),
            (linear_dgrad_wgmma,
             linear_dgrad_few_outputs,
             linear_dgrad_mma_sync,
             linear_dgrad_smem_tile,
             linear_dgrad_naive
             KILN_CUBLAS(linear_dgrad_cublas)))

KILN_TABLES(LinearWgrad,
            (linear_wgrad_cpu_fast,
             linear_wgrad_cpu_naive),
            (linear_wgrad_wgmma,
             linear_wgrad_few_outputs,
             linear_wgrad_mma_sync,
             linear_wgrad_smem_tile,
             linear_wgrad_naive
             KILN_CUBLAS(linear_wgrad_cublas)))
// clang-format on

}  // namespace kiln
