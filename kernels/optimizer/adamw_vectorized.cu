// adamw: g' = scale * g (scale clips), w *= 1 - lr * wd (first `decayed` parameters), m = b1 * m + (1 - b1) *
// g', v = b2 * v + (1 - b2) * g'^2, w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), and the
// working copy is w rounded to its type.
//
// A thread owns four neighbours, 16 bytes an access, in one launch for everything; the last parameters that
// fill no vector go to the first threads one by one (step_kernels.cuh). 36 bytes of shared memory at most,
// any n, tensors 16-byte aligned (make_plan checks), fp32 arithmetic, deterministic. Mirrors
// cpu_reference/adamw_naive.cpp.
#include "kernels/optimizer/step_kernels.cuh"

namespace kiln {

extern const Impl<AdamwStep> adamw_step_vectorized = {
    .name = "vectorized",
    .supports = [](const AdamwProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const AdamwProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return plan_step_vectorized<AdamwRule>(p, "adamw_step_vectorized_kernel");
        }};

}  // namespace kiln
