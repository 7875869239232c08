// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c];  dbias[k] = sum
// dy[n,p,q,k].
//
// The first rung: a block owns dw[k,r,s,c..c+31]. A lane owns one c, so that a warp reads x contiguously and
// one dy for all its lanes; the block's 16 warps share the output rows (n,p) round robin and their sums in
// double are added in warp order. A second kernel does the same for dbias. Shared memory 4 KiB. Any problem,
// deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;

// Sum of the warps' values of one lane, in warp order; warp 0 gets it.
__device__ double sum_over_warps(double v) {
  __shared__ double partial[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  partial[warp][lane] = v;
  __syncthreads();
  double sum = 0;
  for (int i = 0; warp == 0 && i < kWarps; ++i) sum += partial[i][lane];
  return sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_wgrad_naive_kernel(
    const T* __restrict__ dy,  // [N,P,Q,K]
    const T* __restrict__ x,   // [N,H,W,c_stride]
    float* __restrict__ dw,    // [K,R,S,C]
    const __grid_constant__ Conv2dShape p) {
  const int groups = (p.c + 31) / 32;  // blockIdx.x counts [K,R,S,groups]
  const int c = blockIdx.x % groups * 32 + threadIdx.x % 32;
  const int filter_tap = blockIdx.x / groups;  // k, r and s
  const int s = filter_tap % p.s, r = filter_tap / p.s % p.r, k = filter_tap / (p.s * p.r);
  double sum = 0;
  for (long long row = threadIdx.x / 32; row < 1LL * p.n * p.p; row += kWarps) {
    const int h = static_cast<int>(row % p.p) * p.stride_h + r - p.pad_h;
    if (h < 0 || h >= p.h || c >= p.c) continue;
    const T* grad = dy + row * p.q * p.k + k;
    const T* in = x + (row / p.p * p.h + h) * p.w * p.c_stride + c;
#pragma unroll 4
    for (int q = 0; q < p.q; ++q) {
      const int left = q * p.stride_w + s - p.pad_w;
      if (left < 0 || left >= p.w) continue;
      sum += static_cast<double>(to_float(grad[static_cast<long long>(q) * p.k])) *
             to_float(in[static_cast<long long>(left) * p.c_stride]);
    }
  }
  sum = sum_over_warps(sum);
  if (threadIdx.x < 32 && c < p.c) dw[static_cast<long long>(filter_tap) * p.c + c] = static_cast<float>(sum);
}

template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_dbias_naive_kernel(const T* __restrict__ dy,  // [pixels,K]
                                                                      float* __restrict__ dbias,  // [K]
                                                                      int pixels, int K) {
  const int k = blockIdx.x * 32 + threadIdx.x % 32;
  const int end = k < K ? pixels : 0;
  double sum = 0;
#pragma unroll 4
  for (long long i = threadIdx.x / 32; i < end; i += kWarps) sum += to_float(dy[i * K + k]);
  sum = sum_over_warps(sum);
  if (threadIdx.x < 32 && k < K) dbias[k] = static_cast<float>(sum);
}

template <class T>
Plan<Conv2dWgrad::Args> plan(const Conv2dProblem& p) {
  return make_plan<Conv2dWgrad::Args>(0, [p](const Conv2dWgrad::Args& a, void*, Stream stream) {
    const auto* dy = static_cast<const T*>(a.dy);
    conv2d_wgrad_naive_kernel<T><<<p.k * p.r * p.s * ceil_div(p.c, 32), kThreads, 0, cuda_stream(stream)>>>(
        dy, static_cast<const T*>(a.x), static_cast<float*>(a.dw), Conv2dShape(p));
    check_launch("conv2d_wgrad_naive_kernel");
    if (!p.bias) return;
    conv2d_dbias_naive_kernel<T><<<ceil_div(p.k, 32), kThreads, 0, cuda_stream(stream)>>>(
        dy, static_cast<float*>(a.dbias), p.n * p.p() * p.q(), p.k);
    check_launch("conv2d_dbias_naive_kernel");
  });
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_naive = {
    .name = "naive",
    .supports = conv2d_supports_fp32_bf16,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
    }};

}  // namespace kiln
