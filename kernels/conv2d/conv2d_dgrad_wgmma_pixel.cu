// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c], on Hopper's
// tensor cores, without the products with padding.
//
// As conv2d_fwd_wgmma_pixel.cu over dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees;
// configs alike. The filter needs no transposed copy: a box of [K][RS][C] is k rows of c, an MN-major B tile.
// For += the copy engine brings the old values into the staging tiles. One block a multiprocessor, up to
// 226 KiB of shared memory. Needs compute capability 9.0, bf16, stride 1, channels in multiples of 8 and
// packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_pixel_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  const Support gather = wgmma_dgrad_supports(p, device);
  return gather ? pixel_supports(wgmma_dgrad_gather(p, device)) : gather;
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma_pixel = {
    .name = "wgmma_pixel",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(PixelTiles::candidates<true>(), wgmma_dgrad_gather(p, device), config,
                            wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(PixelTiles::candidates<true>(), wgmma_dgrad_gather(p, device));
        },
    .preferred = [](const Conv2dProblem& p,
                    const Device& device) { return pixel_preferred(wgmma_dgrad_gather(p, device)); }};

}  // namespace kiln
