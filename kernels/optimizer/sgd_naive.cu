// sgd: g' = scale * g + wd * w (first `decayed` parameters; scale clips), v = momentum * v + g', w -= lr *
// (nesterov ? g' + momentum * v : v), and the working copy is w rounded to its type.
//
// The first rung: a thread owns one parameter, computes in double and loops with the grid's stride
// (step_kernels.cuh). 72 bytes of shared memory at most, any size, deterministic. Mirrors
// cpu_reference/sgd_naive.cpp.
#include "kernels/optimizer/step_kernels.cuh"

namespace kiln {

extern const Impl<SgdStep> sgd_step_naive = {
    .name = "naive",
    .supports = [](const SgdProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const SgdProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return plan_step_naive<SgdRule>(p, "sgd_step_naive_kernel");
        }};

}  // namespace kiln
