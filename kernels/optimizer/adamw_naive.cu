// adamw: g' = scale * g (scale clips), w *= 1 - lr * wd (first `decayed` parameters), m = b1 * m + (1 - b1) *
// g', v = b2 * v + (1 - b2) * g'^2, w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), and the
// working copy is w rounded to its type.
//
// The first rung: a thread owns one parameter, computes in double and loops with the grid's stride
// (step_kernels.cuh). 72 bytes of shared memory at most, any size, deterministic. Mirrors
// cpu_reference/adamw_naive.cpp.
#include "kernels/optimizer/step_kernels.cuh"

namespace kiln {

extern const Impl<AdamwStep> adamw_step_naive = {
    .name = "naive",
    .supports = [](const AdamwProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const AdamwProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return plan_step_naive<AdamwRule>(p, "adamw_step_naive_kernel");
        }};

}  // namespace kiln
