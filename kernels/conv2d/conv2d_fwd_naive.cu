// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], with any
// epilogue.
//
// The first rung: a thread owns one element of y and loops with the grid's stride; consecutive threads own
// consecutive k, so that a warp reads one x for all its lanes and the filter rows stay in L1 while c
// advances. Sums in double. No shared memory, any problem, deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/activation/activation_kind.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_fwd_naive_kernel(
    const T* __restrict__ x,          // [N,H,W,c_stride]
    const T* __restrict__ w,          // [K,R,S,C]
    const float* __restrict__ scale,  // [K] or null
    const float* __restrict__ bias,   // [K] or null
    const T* __restrict__ residual,   // [N,P,Q,K] or null
    T* __restrict__ y,                // [N,P,Q,K]
    const __grid_constant__ Conv2dShape p, ActKind act) {
  const int P = p.p, Q = p.q, ld = p.c_stride;
  const long long elements = 1LL * p.n * P * Q * p.k;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < elements;
       i += 1LL * gridDim.x * kThreads) {
    const int k = static_cast<int>(i % p.k), pixel = static_cast<int>(i / p.k);
    const int n = pixel / (P * Q);
    const int top = pixel / Q % P * p.stride_h - p.pad_h, left = pixel % Q * p.stride_w - p.pad_w;
    double sum = 0.0;
    for (int r = 0; r < p.r; ++r) {
      if (top + r < 0 || top + r >= p.h) continue;
      for (int s = 0; s < p.s; ++s) {
        if (left + s < 0 || left + s >= p.w) continue;
        const T* in = x + ((static_cast<long long>(n) * p.h + top + r) * p.w + left + s) * ld;
        const T* tap = w + ((static_cast<long long>(k) * p.r + r) * p.s + s) * p.c;
        for (int c = 0; c < p.c; ++c) sum += static_cast<double>(to_float(in[c])) * to_float(tap[c]);
      }
    }
    if (scale) sum *= scale[k];
    if (bias) sum += bias[k];
    if (residual) sum += to_float(residual[i]);
    y[i] = from_float<T>(static_cast<float>(activate(sum, act)));
  }
}

template <class T>
Plan<Conv2dFwd::Args> plan(const Conv2dProblem& p) {
  return make_plan<Conv2dFwd::Args>(0, [p](const Conv2dFwd::Args& a, void*, Stream stream) {
    const unsigned blocks = grid_for(1LL * p.n * p.p() * p.q() * p.k, kThreads, 1 << 20);
    conv2d_fwd_naive_kernel<T><<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const T*>(a.w),
        p.scale ? static_cast<const float*>(a.scale) : nullptr,
        p.bias ? static_cast<const float*>(a.bias) : nullptr,
        p.residual ? static_cast<const T*>(a.residual) : nullptr, static_cast<T*>(a.y), Conv2dShape(p),
        p.act);
    check_launch("conv2d_fwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_naive = {
    .name = "naive",
    .supports = conv2d_supports_fp32_bf16,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
    }};

}  // namespace kiln
