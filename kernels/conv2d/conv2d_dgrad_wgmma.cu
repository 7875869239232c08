// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c], on Hopper's
// tensor cores.
//
// The forward's gathered product over dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees:
// tap (r, s) of the sweep meets w[k, R-1-r, S-1-s, c]. The filter needs no transposed copy: a box of
// [K][RS][C] is k rows of c, an MN-major B tile, which wgmma takes for bf16. Blocks, stages and configs as in
// conv2d_fwd_wgmma.cu (161 to 218 KiB of shared memory). Needs compute capability 9.0, bf16, stride 1,
// channels in multiples of 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  return wgmma_gather_supports(p, device);
}

WgmmaGather gather_of(const Conv2dProblem& p, const Device& device) {
  const int origin_h = p.pad_h - (p.r - 1), origin_w = p.pad_w - (p.s - 1);
  return {.src = {.base = nullptr,
                  .c = p.k,
                  .w = p.q(),
                  .h = p.p(),
                  .n = p.n,
                  .channel_stride = p.k,
                  .lower_w = origin_w,
                  .lower_h = origin_h,
                  .upper_w = -p.pad_w,
                  .upper_h = -p.pad_h,
                  .stride_w = 1,
                  .stride_h = 1,
                  .channels = 0,
                  .pixels = 0},
          .shape = {.rows = p.n * p.h * p.w,
                    .out_h = p.h,
                    .out_w = p.w,
                    .src_c = p.k,
                    .columns = p.c,
                    .r = p.r,
                    .s = p.s,
                    .stride_h = 1,
                    .stride_w = 1,
                    .origin_h = origin_h,
                    .origin_w = origin_w,
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .steps = 0,
                    .accumulate = p.accumulate},
          .filter_c = p.c,
          .filter_k = p.k,
          .multiprocessors = device.multiprocessors};
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma = {
    .name = "wgmma",
    .supports = supports,
    .plan = [](const Conv2dProblem& p, const Device& device, std::string_view config) {
      return wgmma_gather_plan<Conv2dDgrad::Args, true>(
          gather_of(p, device), config, [](const Conv2dDgrad::Args& a) -> WgmmaBuffers {
            return {.src = a.dy, .filter = a.w, .bias = nullptr, .out = a.dx};
          });
    }};

}  // namespace kiln
