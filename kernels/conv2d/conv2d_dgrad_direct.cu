// conv2d dgrad with a 1x1 filter, stride 1 and few channels: dx[n,h,w,c] = sum_k dy[n,h,w,k] * w[k,c],
// between registers and memory.
//
// As conv2d_fwd_direct.cu with dy as the source; the filter's fragments are put together from two rows of w.
// No shared memory. Needs bf16, channels in multiples of 8, at most 96, of x or of y at most 32, and packed.
// Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_direct.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.accumulate) return Support::no("it writes dx and does not add to it");
  const Support gate = conv2d_takes_no_gate(p);
  return gate ? direct_supports(p, device) : gate;
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_direct = {
    .name = "direct",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          const DirectShape g = {.rows = p.n * p.h * p.w, .sources = p.k, .columns = p.c};
          return direct_plan<true, Conv2dDgrad::Args>(g, false, device, [](const Conv2dDgrad::Args& a) {
            return DirectBuffers{a.dy, a.w, nullptr, a.dx};
          });
        },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          return direct_preferred<true>(p.n * p.h * p.w, p.k, p.c, device);
        }};

}  // namespace kiln
