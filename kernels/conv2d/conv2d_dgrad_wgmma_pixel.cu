// conv2d dgrad: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c], on
// Hopper's tensor cores, without the products with padding, and with a stride without those with zeros.
//
// As conv2d_fwd_wgmma_pixel.cu over dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees,
// or with a stride its taps of the pixel's parity; configs alike. The filter needs no transposed copy: a box
// of [K][RS][C] is k rows of c, an MN-major B tile. For += the copy engine brings the old values into the
// staging tiles. One block a multiprocessor, up to 226 KiB of shared memory. Needs compute capability 9.0,
// bf16, channels in multiples of 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_pixel_plan.cuh"

namespace kiln {

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma_parity;

namespace {

WgmmaGather pixel_gather(const Conv2dProblem& p, const Device& device) {
  WgmmaGather gather = wgmma_dgrad_gather(p, device);
  gather.parity_h = p.stride_h;
  gather.parity_w = p.stride_w;
  return gather;
}

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  const Support gather = wgmma_gather_supports(p, device);
  return gather ? pixel_supports(pixel_gather(p, device)) : gather;
}

// With a stride: where tiles are full, of images and of channels, and wgmma_parity is thought to take longer
// or does not take the problem; a 1x1 filter's work is mostly zeros to write.
bool preferred(const Conv2dProblem& p, const Device& device) {
  const WgmmaGather gather = pixel_gather(p, device);
  if (p.stride_h == 1 && p.stride_w == 1) return pixel_preferred(gather);
  if (p.n < 128 || p.c % 128 || p.r * p.s == 1) return false;
  return !conv2d_dgrad_wgmma_parity.supports(p, device) ||
         pixel_compared_clocks(gather) < parity_launch_clocks(p, device);
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma_pixel = {
    .name = "wgmma_pixel",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(PixelTiles::candidates<true>(), pixel_gather(p, device), config,
                            wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(PixelTiles::candidates<true>(), pixel_gather(p, device));
        },
    .preferred = preferred};

}  // namespace kiln
