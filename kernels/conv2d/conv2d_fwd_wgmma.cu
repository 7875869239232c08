// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], on Hopper's
// tensor cores, and with the epilogue of conv2d_epilogue.cuh.
//
// Implicit GEMM as in conv2d_fwd_mma_sync.cu, but no thread computes an address: the copy engine gathers the
// A tile (im2col mode; coordinates of the first pixel, displaced by the tap) and cuts the B tile from w as it
// lies, [K][RS][C], both swizzled as wgmma reads them. See conv2d_wgmma.cuh for blocks, warpgroups and
// stages; one block a multiprocessor, 153 to 217 KiB of shared memory. Config "wgmma:128x256x64_s4": rows x
// columns x channels of a tile, stages; "_c2": pairs of blocks share the filter's tile. Needs compute
// capability 9.0, bf16, channels in multiples of 8. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

extern const Impl<Conv2dFwd> conv2d_fwd_wgmma = {
    .name = "wgmma",
    .supports = wgmma_fused_gather_supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(wgmma_candidates<false>(), wgmma_fwd_gather(p, device), config,
                            wgmma_fwd_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(wgmma_candidates<false>(), wgmma_fwd_gather(p, device));
        }};

}  // namespace kiln
