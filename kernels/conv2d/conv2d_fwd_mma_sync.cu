// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], on tensor cores,
// and with the epilogue of conv2d_epilogue.cuh.
//
// Implicit GEMM: rows are output pixels, columns output channels, the sum runs over taps and channels. No
// im2col tensor is written: each 16-byte piece of the A tile is fetched by cp.async from where its tap lies
// in x, or filled with zeros where that is padding. mma.sync m16n8k16 on bf16 or m16n8k8 on fp32 rounded to
// tf32, fp32 accumulators; four stages of shared memory keep three copies in flight behind the arithmetic.
// The output goes through shared memory so that stores are 16 bytes. A block: 128 pixels x 128 channels, 256
// x 64 or 256 x 32, eight warps, at most 80 KiB of shared memory. Needs channels in multiples of 16 bytes.
// Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
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
  const Support taken = mma_sync_takes(p);
  return taken ? conv2d_epilogue_supports(p) : taken;
}

template <class Config>
Plan<Conv2dFwd::Args> plan_for(const Conv2dProblem& p) {
  const GatherShape g = {.rows = p.n * p.p() * p.q(),
                         .out_h = p.p(),
                         .out_w = p.q(),
                         .src_h = p.h,
                         .src_w = p.w,
                         .src_c = p.c,
                         .src_stride = p.x_channels(),
                         .columns = p.k,
                         .r = p.r,
                         .s = p.s,
                         .stride_h = p.stride_h,
                         .stride_w = p.stride_w,
                         .pad_h = p.pad_h,
                         .pad_w = p.pad_w,
                         .accumulate = false};
  using T = typename Config::T;
  const auto kernel = p.has_epilogue() ? conv2d_gather_mma_sync_kernel<Config, false, true>
                                       : conv2d_gather_mma_sync_kernel<Config, false, false>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_fwd_mma_sync: shared memory");
  const unsigned blocks =
      static_cast<unsigned>(1LL * ceil_div(g.rows, Config::kBM) * ceil_div(g.columns, Config::kBN));
  return make_plan<Conv2dFwd::Args>(0, [=](const Conv2dFwd::Args& a, void*, Stream stream) {
    GatherShape shape = g;
    shape.epilogue = conv2d_epilogue(p, a);
    kernel<<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const T*>(a.w), static_cast<const float*>(a.bias),
        static_cast<T*>(a.y), shape);
    check_launch("conv2d_gather_mma_sync_kernel (fwd)");
  });
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_mma_sync = {
    .name = "mma_sync",
    .supports = supports,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return mma_sync_with_type(p.dtype, [&]<class T>(T) {
        return p.k <= 32 ? plan_for<Slim<T>>(p) : p.k <= 64 ? plan_for<Narrow<T>>(p) : plan_for<Wide<T>>(p);
      });
    }};

}  // namespace kiln
