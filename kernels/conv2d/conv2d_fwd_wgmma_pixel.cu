// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], on Hopper's
// tensor cores, without the products with padding, and with the epilogue of conv2d_epilogue.cuh.
//
// Rows of a tile are the same output pixel of 128 to 256 images, so that a tap lies on padding for all of
// them or for none: a 3x3 filter has 60 % of the products left on a 3x3 map, 69 % on 4x4, 84 % on 8x8. See
// conv2d_wgmma_pixel.cuh for blocks, warpgroups and stages; one block a multiprocessor, up to 226 KiB of
// shared memory. Config "wgmma_pixel:128x256x64_s3": images x columns x channels of a tile, stages; "_pp":
// the warpgroups have tiles of their own in turns. Needs compute capability 9.0, bf16, channels in multiples
// of 8. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_pixel_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support sums = wgmma_sums_supports(p); !sums) return sums;
  const Support gather = wgmma_fused_gather_supports(p, device);
  return gather ? pixel_supports(wgmma_fwd_gather(p, device)) : gather;
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_wgmma_pixel = {
    .name = "wgmma_pixel",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(PixelTiles::candidates<false>(), wgmma_fwd_gather(p, device), config,
                            wgmma_fwd_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(PixelTiles::candidates<false>(), wgmma_fwd_gather(p, device));
        },
    .preferred = [](const Conv2dProblem& p,
                    const Device& device) { return pixel_preferred(wgmma_fwd_gather(p, device)); },
    .gains = [](const Conv2dProblem& p, const Device&) { return wgmma_sums_gain(p); }};

}  // namespace kiln
