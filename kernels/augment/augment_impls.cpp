// The table of augment: one line an implementation, best first.
#include "kernels/augment/augment.h"

namespace kiln {

// clang-format off
KILN_TABLES(AugmentFwd,
            (augment_fwd_cpu_fast,
             augment_fwd_cpu_naive),
            (augment_fwd_vectorized,
             augment_fwd_naive))
// clang-format on

}  // namespace kiln
