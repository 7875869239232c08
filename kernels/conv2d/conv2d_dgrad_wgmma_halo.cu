// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c], on Hopper's
// tensor cores.
//
// As conv2d_dgrad_wgmma.cu, but the filter's R rows read one copy of dy's rows in shared memory, and a filter
// of 64 x 64 channels is loaded once a block: see conv2d_wgmma_halo.cuh. One block a multiprocessor, 209 to
// 217 KiB of shared memory; configs as in conv2d_fwd_wgmma_halo.cu. Needs compute capability 9.0, bf16,
// stride 1, channels in multiples of 8 and packed, and an input map whose rows make whole tiles.
// Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_halo_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  const Support gather = wgmma_dgrad_supports(p, device);
  return gather ? halo_supports(wgmma_dgrad_gather(p, device)) : gather;
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma_halo = {
    .name = "wgmma_halo",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(halo_candidates<true>(), wgmma_dgrad_gather(p, device), config,
                            wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(halo_candidates<true>(), wgmma_dgrad_gather(p, device));
        }};

}  // namespace kiln
