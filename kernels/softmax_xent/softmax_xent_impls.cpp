// The tables of softmax_xent: one line an implementation, best first.
#include "kernels/softmax_xent/softmax_xent.h"

namespace kiln {

// clang-format off
KILN_TABLES(SoftmaxXentFwd,
            (softmax_xent_fwd_cpu_fast,
             softmax_xent_fwd_cpu_naive),
            (softmax_xent_fwd_warp_tile,
             softmax_xent_fwd_register_row,
             softmax_xent_fwd_thread_row,
             softmax_xent_fwd_warp_row,
             softmax_xent_fwd_block_row,
             softmax_xent_fwd_naive))

KILN_TABLES(SoftmaxXentFwdBwd,
            (softmax_xent_fwd_bwd_cpu_fast,
             softmax_xent_fwd_bwd_cpu_naive),
            (softmax_xent_fwd_bwd_warp_tile,
             softmax_xent_fwd_bwd_register_row,
             softmax_xent_fwd_bwd_thread_row,
             softmax_xent_fwd_bwd_warp_row,
             softmax_xent_fwd_bwd_block_row,
             softmax_xent_fwd_bwd_naive))
// clang-format on

}  // namespace kiln
