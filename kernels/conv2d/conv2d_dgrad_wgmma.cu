// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c], on Hopper's
// tensor cores.
//
// The forward's gathered product over dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees:
// tap (r, s) of the sweep meets w[k, R-1-r, S-1-s, c]. The filter needs no transposed copy: a box of
// [K][RS][C] is k rows of c, an MN-major B tile, which wgmma takes for bf16. Blocks, stages and configs as in
// conv2d_fwd_wgmma.cu (153 to 217 KiB of shared memory). Needs compute capability 9.0, bf16, stride 1,
// channels in multiples of 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma = {
    .name = "wgmma",
    .supports = wgmma_dgrad_supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(wgmma_candidates<true>(), wgmma_dgrad_gather(p, device), config,
                            wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(wgmma_candidates<true>(), wgmma_dgrad_gather(p, device));
        },
    .preferred = wgmma_dgrad_preferred};

}  // namespace kiln
