// The tables of batchnorm: one line an implementation, best first.
#include "kernels/batchnorm/batchnorm.h"

namespace kiln {

// clang-format off
KILN_TABLES(BatchnormFwdTrain,
            (batchnorm_fwd_train_cpu_fast,
             batchnorm_fwd_train_cpu_naive),
            (batchnorm_fwd_train_tma_ring,
             batchnorm_fwd_train_on_chip,
             batchnorm_fwd_train_two_pass,
             batchnorm_fwd_train_naive
             KILN_CUDNN(batchnorm_fwd_train_cudnn)))

KILN_TABLES(BatchnormFwdGiven,
            (batchnorm_fwd_given_cpu_fast,
             batchnorm_fwd_given_cpu_naive),
            (batchnorm_fwd_given_vectorized,
             batchnorm_fwd_given_naive))

KILN_TABLES(BatchnormFwdApply,
            (batchnorm_fwd_apply_cpu_fast,
             batchnorm_fwd_apply_cpu_naive),
            (batchnorm_fwd_apply_vectorized,
             batchnorm_fwd_apply_naive))

KILN_TABLES(BatchnormFwdInfer,
            (batchnorm_fwd_infer_cpu_fast,
             batchnorm_fwd_infer_cpu_naive),
            (batchnorm_fwd_infer_vectorized,
             batchnorm_fwd_infer_naive
             KILN_CUDNN(batchnorm_fwd_infer_cudnn)))

KILN_TABLES(BatchnormBwd,
            (batchnorm_bwd_cpu_fast,
             batchnorm_bwd_cpu_naive),
            (batchnorm_bwd_tma_ring,
             batchnorm_bwd_on_chip,
             batchnorm_bwd_two_pass,
             batchnorm_bwd_windows,
             batchnorm_bwd_naive
             KILN_CUDNN(batchnorm_bwd_cudnn)))
// clang-format on

}  // namespace kiln
