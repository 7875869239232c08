// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], on Hopper's
// tensor cores.
//
// Implicit GEMM as in conv2d_fwd_mma_sync.cu, but no thread computes an address: the copy engine gathers the
// A tile (im2col mode; coordinates of the first pixel, displaced by the tap) and cuts the B tile from w as it
// lies, [K][RS][C], both swizzled as wgmma reads them. See conv2d_wgmma.cuh for blocks, warpgroups and
// stages; one block a multiprocessor, 161 to 218 KiB of shared memory. Config "wgmma:128x256x64_s4": rows x
// columns x channels of a tile, stages; "_c2": pairs of blocks share the filter's tile. Needs compute
// capability 9.0, bf16, channels in multiples of 8. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {
namespace {

WgmmaGather gather_of(const Conv2dProblem& p, const Device& device) {
  return {.src = {.base = nullptr,
                  .c = p.c,
                  .w = p.w,
                  .h = p.h,
                  .n = p.n,
                  .channel_stride = p.x_channels(),
                  .lower_w = -p.pad_w,
                  .lower_h = -p.pad_h,
                  .upper_w = p.pad_w - (p.s - 1),
                  .upper_h = p.pad_h - (p.r - 1),
                  .stride_w = p.stride_w,
                  .stride_h = p.stride_h,
                  .channels = 0,
                  .pixels = 0},
          .shape = {.rows = p.n * p.p() * p.q(),
                    .out_h = p.p(),
                    .out_w = p.q(),
                    .src_c = p.c,
                    .columns = p.k,
                    .r = p.r,
                    .s = p.s,
                    .stride_h = p.stride_h,
                    .stride_w = p.stride_w,
                    .origin_h = -p.pad_h,
                    .origin_w = -p.pad_w,
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .steps = 0,
                    .accumulate = false},
          .filter_c = p.c,
          .filter_k = p.k,
          .multiprocessors = device.multiprocessors};
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_wgmma = {
    .name = "wgmma",
    .supports = wgmma_gather_supports,
    .plan = [](const Conv2dProblem& p, const Device& device, std::string_view config) {
      return wgmma_gather_plan<Conv2dFwd::Args, false>(
          gather_of(p, device), config, [](const Conv2dFwd::Args& a) -> WgmmaBuffers {
            return {.src = a.x, .filter = a.w, .bias = a.bias, .out = a.y};
          });
    }};

}  // namespace kiln
