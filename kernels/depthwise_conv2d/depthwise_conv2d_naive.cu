// depthwise_conv2d, the first rung of all three passes, summed in double.
//
//   fwd    y[n,p,q,c]  = bias[c] + sum_{r,s} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[r,s,c]
//   dgrad  dx[n,h,w,c] = sum_{r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,c] * w[r,s,c]
//   wgrad  dw[r,s,c]   = sum_{n,p,q} dy[n,p,q,c] * x[n, p*sh+r-ph, q*sw+s-pw, c],  dbias[c] = sum dy[n,p,q,c]
//
// fwd, dgrad: a thread owns one output element and loops with the grid's stride; a warp's lanes are channels.
// wgrad: a block owns dw[r,s,c..c+31] (or dbias[c..c+31]), a lane one c; 16 warps share the rows (n,p) round
// robin and are added in warp order; shared memory 4 KiB. Any problem, deterministic. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr long long kMostBlocks = 1 << 20;
constexpr int kWarps = 16;

// The problem as plain numbers that device code can read.
struct Shape {
  int n, h, w, c, p, q, r, s, stride_h, stride_w, pad_h, pad_w;
};

Shape shape_of(const DepthwiseConv2dProblem& o) {
  return {o.n, o.h, o.w, o.c, o.p(), o.q(), o.r, o.s, o.stride_h, o.stride_w, o.pad_h, o.pad_w};
}

template <class T>
__global__ __launch_bounds__(kThreads) void depthwise_conv2d_fwd_naive_kernel(
    const T* __restrict__ x,         // [N,H,W,C]
    const T* __restrict__ w,         // [R,S,C]
    const float* __restrict__ bias,  // [C] or null
    T* __restrict__ y,               // [N,P,Q,C]
    const __grid_constant__ Shape g) {
  const long long elements = 1LL * g.n * g.p * g.q * g.c;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < elements;
       i += 1LL * gridDim.x * kThreads) {
    const int pixel = static_cast<int>(i) / g.c, c = static_cast<int>(i) - pixel * g.c;  // below 2^31
    const int n = pixel / g.q / g.p;
    const int top = pixel / g.q % g.p * g.stride_h - g.pad_h, left = pixel % g.q * g.stride_w - g.pad_w;
    double sum = bias ? bias[c] : 0.0;
    for (int r = 0; r < g.r; ++r) {
      if (top + r < 0 || top + r >= g.h) continue;
      for (int s = 0; s < g.s; ++s) {
        if (left + s < 0 || left + s >= g.w) continue;
        const T value = x[((static_cast<long long>(n) * g.h + top + r) * g.w + left + s) * g.c + c];
        sum += static_cast<double>(to_float(value)) *
               to_float(w[(static_cast<long long>(r) * g.s + s) * g.c + c]);
      }
    }
    y[i] = from_float<T>(static_cast<float>(sum));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void depthwise_conv2d_dgrad_naive_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    const T* __restrict__ w,   // [R,S,C]
    T* __restrict__ dx,        // [N,H,W,C]
    const __grid_constant__ Shape g) {
  const long long elements = 1LL * g.n * g.h * g.w * g.c;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < elements;
       i += 1LL * gridDim.x * kThreads) {
    const int pixel = static_cast<int>(i) / g.c, c = static_cast<int>(i) - pixel * g.c;  // below 2^31
    const int n = pixel / g.w / g.h, h = pixel / g.w % g.h, column = pixel % g.w;
    double sum = 0;
    for (int r = 0; r < g.r; ++r) {
      const int top = h + g.pad_h - r;
      if (top < 0 || top % g.stride_h != 0 || top / g.stride_h >= g.p) continue;
      for (int s = 0; s < g.s; ++s) {
        const int left = column + g.pad_w - s;
        if (left < 0 || left % g.stride_w != 0 || left / g.stride_w >= g.q) continue;
        const T grad =
            dy[((static_cast<long long>(n) * g.p + top / g.stride_h) * g.q + left / g.stride_w) * g.c + c];
        sum += static_cast<double>(to_float(grad)) *
               to_float(w[(static_cast<long long>(r) * g.s + s) * g.c + c]);
      }
    }
    dx[i] = from_float<T>(static_cast<float>(sum));
  }
}

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
__global__ __launch_bounds__(32 * kWarps) void depthwise_conv2d_wgrad_naive_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    const T* __restrict__ x,   // [N,H,W,C]
    float* __restrict__ dw,    // [R,S,C]
    const __grid_constant__ Shape g) {
  const int groups = (g.c + 31) / 32;  // blockIdx.x counts [R,S,groups]
  const int c = blockIdx.x % groups * 32 + threadIdx.x % 32;
  const int tap = blockIdx.x / groups, r = tap / g.s, s = tap % g.s;
  double sum = 0;
  for (int row = threadIdx.x / 32; row < g.n * g.p; row += kWarps) {
    const int n = row / g.p, h = (row - n * g.p) * g.stride_h + r - g.pad_h;
    if (h < 0 || h >= g.h || c >= g.c) continue;
    const T* grad = dy + static_cast<long long>(row) * g.q * g.c + c;
    const T* in = x + (static_cast<long long>(n) * g.h + h) * g.w * g.c + c;
#pragma unroll 4
    for (int q = 0; q < g.q; ++q) {
      const int left = q * g.stride_w + s - g.pad_w;
      if (left < 0 || left >= g.w) continue;
      sum += static_cast<double>(to_float(grad[q * g.c])) * to_float(in[left * g.c]);
    }
  }
  sum = sum_over_warps(sum);
  if (threadIdx.x < 32 && c < g.c) dw[static_cast<long long>(tap) * g.c + c] = static_cast<float>(sum);
}

template <class T>
__global__ __launch_bounds__(32 * kWarps) void depthwise_conv2d_dbias_naive_kernel(
    const T* __restrict__ dy,   // [pixels,C]
    float* __restrict__ dbias,  // [C]
    int pixels, int channels) {
  const int c = blockIdx.x * 32 + threadIdx.x % 32;
  const int end = c < channels ? pixels : 0;
  double sum = 0;
#pragma unroll 4
  for (long long i = threadIdx.x / 32; i < end; i += kWarps) sum += to_float(dy[i * channels + c]);
  sum = sum_over_warps(sum);
  if (threadIdx.x < 32 && c < channels) dbias[c] = static_cast<float>(sum);
}

template <class T>
Plan<DepthwiseConv2dFwd::Args> plan_fwd(const DepthwiseConv2dProblem& p) {
  using Args = DepthwiseConv2dFwd::Args;
  return make_plan<Args>(0, [g = shape_of(p)](const Args& a, void*, Stream stream) {
    const unsigned blocks = grid_for(1LL * g.n * g.p * g.q * g.c, kThreads, kMostBlocks);
    depthwise_conv2d_fwd_naive_kernel<T><<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const T*>(a.w), static_cast<const float*>(a.bias),
        static_cast<T*>(a.y), g);
    check_launch("depthwise_conv2d_fwd_naive_kernel");
  });
}

template <class T>
Plan<DepthwiseConv2dDgrad::Args> plan_dgrad(const DepthwiseConv2dProblem& p) {
  using Args = DepthwiseConv2dDgrad::Args;
  return make_plan<Args>(0, [g = shape_of(p)](const Args& a, void*, Stream stream) {
    const unsigned blocks = grid_for(1LL * g.n * g.h * g.w * g.c, kThreads, kMostBlocks);
    depthwise_conv2d_dgrad_naive_kernel<T><<<blocks, kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.w), static_cast<T*>(a.dx), g);
    check_launch("depthwise_conv2d_dgrad_naive_kernel");
  });
}

template <class T>
Plan<DepthwiseConv2dWgrad::Args> plan_wgrad(const DepthwiseConv2dProblem& p) {
  using Args = DepthwiseConv2dWgrad::Args;
  return make_plan<Args>(0, [g = shape_of(p), bias = p.bias](const Args& a, void*, Stream stream) {
    const T* dy = static_cast<const T*>(a.dy);
    const int groups = ceil_div(g.c, 32);
    depthwise_conv2d_wgrad_naive_kernel<T><<<g.r * g.s * groups, 32 * kWarps, 0, cuda_stream(stream)>>>(
        dy, static_cast<const T*>(a.x), static_cast<float*>(a.dw), g);
    check_launch("depthwise_conv2d_wgrad_naive_kernel");
    if (!bias) return;
    depthwise_conv2d_dbias_naive_kernel<T><<<groups, 32 * kWarps, 0, cuda_stream(stream)>>>(
        dy, static_cast<float*>(a.dbias), g.n * g.p * g.q, g.c);
    check_launch("depthwise_conv2d_dbias_naive_kernel");
  });
}

Support supports(const DepthwiseConv2dProblem&, const Device&) { return Support::yes(); }

}  // namespace

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_dgrad<bf16>(p) : plan_dgrad<float>(p);
    }};

extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_wgrad<bf16>(p) : plan_wgrad<float>(p);
    }};

}  // namespace kiln
