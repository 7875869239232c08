// What the wgmma products of fwd and dgrad are made from: which problems they take, the gathered product that
// such a problem is, and the tensors of each pass.
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"

namespace kiln {

// What both passes ask for beyond their own rules.
inline Support wgmma_gather_supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (p.r > 127 || p.s > 127) return Support::no("filter sides must be at most 127 (im2col corners)");
  return Support::require(p.stride_h <= 8 && p.stride_w <= 8, "strides must be at most 8 (im2col steps)");
}

// The same for a product that is also compiled with an epilogue.
inline Support wgmma_fused_gather_supports(const Conv2dProblem& p, const Device& device) {
  if (p.stats && p.k > 4096) return Support::no("with stats it takes at most 4096 output channels");
  Conv2dProblem plain = p;
  plain.stats = false;
  if (const Support epilogue = conv2d_epilogue_supports(plain); !epilogue) return epilogue;
  plain.scale = plain.residual = false;
  plain.act = ActKind::kNone;
  return wgmma_gather_supports(plain, device);
}

// For implementations whose statistics are sums of columns.
inline Support wgmma_sums_supports(const Conv2dProblem& p) {
  return Support::require(!(p.stats && p.bias), "with stats it takes no bias");
}

inline Support wgmma_dgrad_supports(const Conv2dProblem& p, const Device& device) {
  if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  return wgmma_gather_supports(p, device);
}

// Not where a pixel of dx is one sector of memory, which a 1x1 filter makes of few channels: mma_sync's small
// blocks, several a multiprocessor, keep more of those under way, once there are some waves of them.
inline bool wgmma_dgrad_preferred(const Conv2dProblem& p, const Device& device) {
  if (p.r * p.s > 1 || p.c > 16 || p.k > 128) return true;
  return 1LL * p.n * p.h * p.w < 1024LL * device.multiprocessors;
}

// A gathered product without its buffers: the source's map (without its base and load size) and the shape.
struct WgmmaGather {
  Im2colMap src;
  WgmmaShape shape;  // row_tiles, column_tiles and steps belong to a tile shape
  int filter_c, filter_k;
  int multiprocessors;
  bool fused = false;              // fwd: there is more behind the sum than a bias
  bool stats = false;              // fwd: y's statistics; then a block keeps to one column tile
  bool sums = false;               // and no bias, so that rows that are no pixels add nothing to a sum
  ActKind act = ActKind::kNone;    // fwd: behind the sum; dgrad: what it goes back through
  int parity_h = 1, parity_w = 1;  // dgrad by pixels: the convolution's strides
};

// x as wgmma's fwd and wgrad gather it, without its base and load size.
inline Im2colMap wgmma_im2col(const Conv2dProblem& p) {
  return {.base = nullptr,
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
          .pixels = 0};
}

inline WgmmaGather wgmma_fwd_gather(const Conv2dProblem& p, const Device& device) {
  return {.src = wgmma_im2col(p),
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
          .multiprocessors = device.multiprocessors,
          .fused = p.has_epilogue(),
          .stats = p.stats,
          .sums = p.stats && !p.bias,
          .act = p.act};
}

// dgrad with stride 1 gathers dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees.
inline WgmmaGather wgmma_dgrad_gather(const Conv2dProblem& p, const Device& device) {
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
          .multiprocessors = device.multiprocessors,
          .act = p.dact};
}

// Whether a batchnorm that is given y's statistics gains more than summing the columns takes: one reading of
// y against a launch that merges and a few percent of the product. As timed on an H100; strided products were
// not.
inline bool wgmma_sums_gain(const Conv2dProblem& p) {
  const long long y_bytes = 2LL * p.n * p.p() * p.q() * p.k;
  return p.stats && !p.bias && p.stride_h == 1 && p.stride_w == 1 && y_bytes >= 8LL << 20;
}

struct WgmmaBuffers {
  const void* src;
  const void* filter;
  const void* bias;
  void* out;
  const void* scale = nullptr;
  const void* residual = nullptr;
  const void* gate = nullptr;  // dgrad's x
  void* arg = nullptr;         // fwd's positions of max2
  void* mean = nullptr;
  void* var = nullptr;
  void* workspace = nullptr;    // of wgmma_stats_bytes()
  unsigned* arrived = nullptr;  // zeroed counters, one a column tile
};

// What is behind the product, for the fused kernel.
inline Conv2dEpilogue wgmma_epilogue(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  return {.scale = static_cast<const float*>(buffers.scale),
          .bias = static_cast<const float*>(buffers.bias),
          .residual = buffers.residual,
          .clamp = act_clamp(gather.act)};
}

// `g` of a dgrad that goes back through an activation.
inline WgmmaShape with_gate(WgmmaShape g, const WgmmaGather& gather, const WgmmaBuffers& buffers,
                            bool dgrad) {
  if (!dgrad || gather.act == ActKind::kNone) return g;
  g.gate = {static_cast<const bf16*>(buffers.gate), conv2d_gate(gather.act)};
  return g;
}

// The tensors of each pass.
inline WgmmaBuffers wgmma_fwd_buffers(const Conv2dFwd::Args& a) {
  return {.src = a.x,
          .filter = a.w,
          .bias = a.bias,
          .out = a.y,
          .scale = a.scale,
          .residual = a.residual,
          .arg = a.arg,
          .mean = a.mean,
          .var = a.var};
}
inline WgmmaBuffers wgmma_dgrad_buffers(const Conv2dDgrad::Args& a) {
  return {.src = a.dy, .filter = a.w, .bias = nullptr, .out = a.dx, .gate = a.x};
}

}  // namespace kiln
