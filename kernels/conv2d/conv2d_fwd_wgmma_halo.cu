// conv2d fwd, stride 1: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p+r-ph, q+s-pw, c] * w[k,r,s,c], on Hopper's
// tensor cores, and with the epilogue of conv2d_epilogue.cuh.
//
// As conv2d_fwd_wgmma.cu, but the filter's taps share copies of the source in shared memory, for layers that
// would otherwise wait for L2 or the copy engine. With max2 y is pooled before it is stored. Configs
// "wgmma_halo:256x128x64_s3" (rows x columns x channels of a tile, halos in flight): whole rows of an output
// map whose width divides the tile; a copy for each filter column, see conv2d_wgmma_halo.cuh.
// "256x64x32_solo", "256x128x64_pair" (one warpgroup a tile, or two): any map; one copy for all taps, see
// conv2d_wgmma_sweep.cuh; "_copies": one for each filter column. One block a multiprocessor, 209 to 227 KiB
// of shared memory. Needs compute capability 9.0, bf16, stride 1, channels in multiples of 8, and a filter of
// more than one tap. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_halo_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.pool) return halo_pool_supports(p, device);
  const Support gather = wgmma_fused_gather_supports(p, device);
  return gather ? halo_supports(wgmma_fwd_gather(p, device)) : gather;
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_wgmma_halo = {
    .name = "wgmma_halo",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const WgmmaGather gather = wgmma_fwd_gather(p, device);
          if (p.pool) return wgmma_plan(halo_pool_candidates(), gather, config, wgmma_fwd_buffers);
          return wgmma_plan(halo_candidates<false>(gather), gather, config, wgmma_fwd_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          const WgmmaGather gather = wgmma_fwd_gather(p, device);
          return p.pool ? wgmma_configs(halo_pool_candidates(), gather) : halo_configs<false>(gather);
        },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          // Fewer channels leave tiles so empty that pooling on its own is faster.
          if (p.pool) return p.c >= 24 && p.k >= 24;
          return halo_preferred(wgmma_fwd_gather(p, device));
        },
    .gains =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_sums_gain(p) && !sweep_instead(wgmma_fwd_gather(p, device));
        }};

}  // namespace kiln
