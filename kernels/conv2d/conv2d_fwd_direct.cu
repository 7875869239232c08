// conv2d fwd with a 1x1 filter, stride 1 and few channels: y[n,p,q,k] = bias[k] + sum_c x[n,p,q,c] * w[k,c],
// between registers and memory.
//
// A product of pixels x channels and the filter: see conv2d_direct.cuh for what a block, a warp and a lane
// own. No shared memory. Needs bf16, channels in multiples of 8, at most 96, of x or of y at most 32, and
// packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_direct.cuh"

namespace kiln {

extern const Impl<Conv2dFwd> conv2d_fwd_direct = {
    .name = "direct",
    .supports = direct_supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          const DirectShape g = {.rows = p.n * p.h * p.w, .sources = p.c, .columns = p.k};
          return direct_plan<false, Conv2dFwd::Args>(g, p.bias, device, [](const Conv2dFwd::Args& a) {
            return DirectBuffers{a.x, a.w, a.bias, a.y};
          });
        },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          return direct_preferred<false>(p.n * p.h * p.w, p.c, p.k, device);
        }};

}  // namespace kiln
