// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c], on tensor
// cores.
//
// The forward's gathered product with the taps walked backwards: rows are input pixels, columns input
// channels, the sum runs over taps and output channels. The filter needs no transposed copy: its tile is read
// from [k][c] rows by ldmatrix with transposition (bf16) or element by element (fp32, multiplied as tf32).
// Tiles, stages and stores as in conv2d_fwd_mma_sync.cu (at most 80 KiB of shared memory). Needs stride 1 and
// channels in multiples of 16 bytes. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_mma_sync.cuh"

namespace kiln {
namespace {

template <class T>
using Wide = MmaConfig<T, 128, 128, 2, 4>;
template <class T>
using Narrow = MmaConfig<T, 256, 64, 4, 2>;
template <class T>
using Slim = MmaConfig<T, 256, 32, 8, 1>;

Support supports(const Conv2dProblem& p, const Device&) {
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  return mma_sync_takes(p);
}

template <class Config>
Plan<Conv2dDgrad::Args> plan_for(const Conv2dProblem& p) {
  const GatherShape g = {.rows = p.n * p.h * p.w,
                         .out_h = p.h,
                         .out_w = p.w,
                         .src_h = p.p(),
                         .src_w = p.q(),
                         .src_c = p.k,
                         .src_stride = p.k,
                         .columns = p.c,
                         .r = p.r,
                         .s = p.s,
                         .stride_h = 1,
                         .stride_w = 1,
                         .pad_h = p.pad_h,
                         .pad_w = p.pad_w,
                         .accumulate = p.accumulate,
                         .gate = conv2d_gate(p.dact)};
  using T = typename Config::T;
  const auto kernel = conv2d_gather_mma_sync_kernel<Config, true, false>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_dgrad_mma_sync: shared memory");
  const unsigned blocks =
      static_cast<unsigned>(1LL * ceil_div(g.rows, Config::kBM) * ceil_div(g.columns, Config::kBN));
  return make_plan<Conv2dDgrad::Args>(0, [g, kernel, blocks, gated = p.dact != ActKind::kNone](
                                             const Conv2dDgrad::Args& a, void*, Stream stream) {
    GatherShape bound = g;
    if (gated) bound.x = a.x;
    kernel<<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.w), nullptr, static_cast<T*>(a.dx), bound);
    check_launch("conv2d_gather_mma_sync_kernel (dgrad)");
  });
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_mma_sync = {
    .name = "mma_sync",
    .supports = supports,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return mma_sync_with_type(p.dtype, [&]<class T>(T) {
        return p.c <= 32 ? plan_for<Slim<T>>(p) : p.c <= 64 ? plan_for<Narrow<T>>(p) : plan_for<Wide<T>>(p);
      });
    }};

}  // namespace kiln
