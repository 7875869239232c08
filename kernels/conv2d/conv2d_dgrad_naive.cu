// conv2d dgrad: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c], with
// drelu and drelu6 0 where x[n,h,w,c] has no slope.
//
// The first rung: a thread owns one element of dx (channels beyond C included: zeros) and loops with the
// grid's stride; consecutive threads own consecutive c, so that a warp reads the filter contiguously and one
// dy for all its lanes. Sums in double. No shared memory, any problem, deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_gate.h"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_dgrad_naive_kernel(
    const T* __restrict__ dy,  // [N,P,Q,K]
    const T* __restrict__ w,   // [K,R,S,C]
    const T* __restrict__ x,   // as dx, or null
    T* __restrict__ dx,        // [N,H,W,c_stride]
    const __grid_constant__ Conv2dShape p, Conv2dGate gate) {
  const int P = p.p, Q = p.q, ld = p.c_stride;
  const long long filter = 1LL * p.r * p.s * p.c;
  const long long elements = 1LL * p.n * p.h * p.w * ld;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < elements;
       i += 1LL * gridDim.x * kThreads) {
    const int c = static_cast<int>(i % ld), pixel = static_cast<int>(i / ld);
    const int n = pixel / (p.h * p.w), h = pixel / p.w % p.h, column = pixel % p.w;
    double sum = p.accumulate ? to_float(dx[i]) : 0.0;
    for (int r = 0; c < p.c && r < p.r; ++r) {
      const int top = h + p.pad_h - r;
      if (top < 0 || top % p.stride_h != 0 || top / p.stride_h >= P) continue;
      for (int s = 0; s < p.s; ++s) {
        const int left = column + p.pad_w - s;
        if (left < 0 || left % p.stride_w != 0 || left / p.stride_w >= Q) continue;
        const T* grad =
            dy + ((static_cast<long long>(n) * P + top / p.stride_h) * Q + left / p.stride_w) * p.k;
        const T* tap = w + (static_cast<long long>(r) * p.s + s) * p.c + c;
        for (int k = 0; k < p.k; ++k)
          sum += static_cast<double>(to_float(grad[k])) * to_float(tap[k * filter]);
      }
    }
    if (x && !gate.passes(to_float(x[i]))) sum = 0;
    dx[i] = from_float<T>(static_cast<float>(sum));
  }
}

template <class T>
Plan<Conv2dDgrad::Args> plan(const Conv2dProblem& p) {
  return make_plan<Conv2dDgrad::Args>(0, [p](const Conv2dDgrad::Args& a, void*, Stream stream) {
    const unsigned blocks = grid_for(1LL * p.n * p.h * p.w * p.x_channels(), kThreads, 1 << 20);
    conv2d_dgrad_naive_kernel<T><<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.w),
        p.dact != ActKind::kNone ? static_cast<const T*>(a.x) : nullptr, static_cast<T*>(a.dx),
        Conv2dShape(p), conv2d_gate(p.dact));
    check_launch("conv2d_dgrad_naive_kernel");
  });
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_naive = {
    .name = "naive",
    .supports = conv2d_supports_fp32_bf16,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
    }};

}  // namespace kiln
