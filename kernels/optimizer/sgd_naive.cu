// sgd: g' = g + wd * w (first `decayed` parameters), v = momentum * v + g', w -= lr * (nesterov ? g' +
// momentum * v : v), and the working copy is w rounded to its type.
//
// The first rung: a thread owns one parameter, computes in double and loops with the grid's stride. lr and
// the finite flag are read from StepState; where finite is 0 nothing is written. No shared memory, any size,
// deterministic. Mirrors cpu_reference/sgd_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void sgd_step_naive_kernel(const StepState* __restrict__ step,  // [1]
                                                                  const float* __restrict__ grad,      // [n]
                                                                  float* __restrict__ param,           // [n]
                                                                  float* __restrict__ velocity,        // [n]
                                                                  bf16* __restrict__ copy,  // [n] or null
                                                                  const __grid_constant__ SgdProblem p) {
  if (!step->finite) return;
  const double lr = step->lr, momentum = p.momentum;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < p.n; i += stride) {
    const double w = param[i];
    const double g = grad[i] + (i < p.decayed ? static_cast<double>(p.weight_decay) * w : 0.0);
    const double v = momentum * velocity[i] + g;
    const float updated = static_cast<float>(w - lr * (p.nesterov ? g + momentum * v : v));
    velocity[i] = static_cast<float>(v);
    param[i] = updated;
    if (copy) copy[i] = from_float<bf16>(updated);
  }
}

}  // namespace

extern const Impl<SgdStep> sgd_step_naive = {
    .name = "naive",
    .supports = [](const SgdProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const SgdProblem& problem, const Device&, std::string_view config) {
          require_no_config(config);
          return make_plan<SgdStep::Args>(0, [problem](const SgdStep::Args& a, void*, Stream stream) {
            sgd_step_naive_kernel<<<grid_for(problem.n, kThreads, 1 << 16), kThreads, 0,
                                    cuda_stream(stream)>>>(
                static_cast<const StepState*>(a.step), static_cast<const float*>(a.grad),
                static_cast<float*>(a.param), static_cast<float*>(a.velocity), static_cast<bf16*>(a.copy),
                problem);
            check_launch("sgd_step_naive_kernel");
          });
        }};

}  // namespace kiln
