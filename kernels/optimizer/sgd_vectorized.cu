// sgd: g' = scale * g + wd * w (first `decayed` parameters; scale clips), v = momentum * v + g', w -= lr *
// (nesterov ? g' + momentum * v : v), and the working copy is w rounded to its type.
//
// A thread owns four neighbours, 16 bytes an access, in one launch for everything; the last parameters that
// fill no vector go to the first threads one by one (step_kernels.cuh). 36 bytes of shared memory at most,
// any n, tensors 16-byte aligned (make_plan checks), fp32 arithmetic, deterministic. Mirrors
// cpu_reference/sgd_naive.cpp.
#include "kernels/optimizer/step_kernels.cuh"

namespace kiln {

extern const Impl<SgdStep> sgd_step_vectorized = {
    .name = "vectorized",
    .supports = [](const SgdProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const SgdProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return plan_step_vectorized<SgdRule>(p, "sgd_step_vectorized_kernel");
        }};

}  // namespace kiln
