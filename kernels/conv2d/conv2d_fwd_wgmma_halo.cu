// conv2d fwd, stride 1: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p+r-ph, q+s-pw, c] * w[k,r,s,c], on Hopper's
// tensor cores.
//
// As conv2d_fwd_wgmma.cu, but the filter's R rows read one copy of the input rows in shared memory, and a
// filter of 64 x 64 channels is loaded once a block: see conv2d_wgmma_halo.cuh. For layers that would
// otherwise wait for L2. One block a multiprocessor, 209 to 217 KiB of shared memory. Config
// "wgmma_halo:256x128x64_s3": rows x columns x channels of a tile, halos in flight. Needs compute
// capability 9.0, bf16, stride 1, channels in multiples of 8, and an output map whose rows make whole tiles.
// Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_halo_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  const Support gather = wgmma_gather_supports(p, device);
  return gather ? halo_supports(wgmma_fwd_gather(p, device)) : gather;
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_wgmma_halo = {
    .name = "wgmma_halo",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(halo_candidates<false>(), wgmma_fwd_gather(p, device), config, wgmma_fwd_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(halo_candidates<false>(), wgmma_fwd_gather(p, device));
        }};

}  // namespace kiln
