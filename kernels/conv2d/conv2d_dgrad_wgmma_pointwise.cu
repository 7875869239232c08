// conv2d dgrad with a 1x1 filter and stride 1: dx[n,h,w,c] (+)= sum_k dy[n,h,w,k] * w[k,c], on Hopper's
// tensor cores at the rate of memory.
//
// As conv2d_fwd_wgmma_pointwise.cu with dy as the source; configs alike. The filter needs no transposed copy:
// a box of [K][C] is k rows of c, an MN-major B tile. For += the copy engine brings the old values into the
// staging tiles. One block a multiprocessor, up to 227 KiB of shared memory. Needs compute capability 9.0,
// bf16, channels in multiples of 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_pointwise_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  const Support gather = wgmma_dgrad_supports(p, device);
  return gather ? pointwise_supports(p) : gather;
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_pointwise = {
    .name = "pointwise",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(pointwise_candidates<true>(), wgmma_dgrad_gather(p, device), config,
                            wgmma_dgrad_buffers);
        },
    .configs = [](const Conv2dProblem& p,
                  const Device& device) { return pointwise_configs<true>(wgmma_dgrad_gather(p, device)); },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_dgrad_preferred(p, device) && pointwise_preferred<true>(wgmma_dgrad_gather(p, device));
        }};

}  // namespace kiln
