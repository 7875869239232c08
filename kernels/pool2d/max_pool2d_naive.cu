// max_pool2d fwd: y[n,p,q,c] = max over the window of x[n, p*sh+r-ph, q*sw+s-pw, c], arg its position r*S+s;
// max_pool2d bwd: dx[n,h,w,c] = sum of dy[n,p,q,c] over the windows whose arg is (h,w).
//
// The first rung: a thread owns one element of y (fwd) or dx (bwd) and loops with the grid's stride. The
// backward pass gathers: it visits the windows over its element in (p,q) order and sums in double. Forward
// with arg2 a thread owns the four channels of a byte of positions. No shared memory, any shape and
// alignment, deterministic. Mirrors cpu_reference/max_pool2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d_shape.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

// The maximum of channel c over the window of output pixel (n, p, q), and its position.
template <class T>
__device__ T max_over_window(const T* x, const PoolShape& g, long long n, int p, int q, int c,
                             int& position) {
  T best = T(0.0f);
  position = -1;
  for (int r = 0; r < g.r; ++r) {
    for (int s = 0; s < g.s; ++s) {
      const int h = p * g.stride_h + r - g.pad_h;
      const int w = q * g.stride_w + s - g.pad_w;
      if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
      const T v = x[((n * g.h + h) * g.w + w) * g.c + c];
      if (position < 0 || to_float(v) > to_float(best) || isnan(to_float(v))) {
        best = v;
        position = r * g.s + s;
      }
    }
  }
  return best;
}

template <class T>
__global__ __launch_bounds__(kThreads) void max_pool2d_fwd_naive_kernel(
    const T* __restrict__ x,    // [N,H,W,C]
    T* __restrict__ y,          // [N,P,Q,C]
    uint8_t* __restrict__ arg,  // [N,P,Q,C] or null
    const __grid_constant__ PoolShape g) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < g.elements; i += stride) {
    const int c = i % g.c;
    const int q = i / g.c % g.q;
    const int p = i / g.c / g.q % g.p;
    const long long n = i / g.c / g.q / g.p;
    int position;
    y[i] = max_over_window(x, g, n, p, q, c, position);
    if (arg) arg[i] = static_cast<uint8_t>(position);
  }
}

// A thread owns the four channels whose positions share a byte, and gets their maxima one by one.
template <class T>
__global__ __launch_bounds__(kThreads, 4) void max_pool2d_fwd_naive_arg2_kernel(
    const T* __restrict__ x,    // [N,H,W,C]
    T* __restrict__ y,          // [N,P,Q,C]
    uint8_t* __restrict__ arg,  // [N,P,Q,ceil(C/4)]
    const __grid_constant__ PoolShape g) {
  const int bytes = (g.c + 3) / 4;
  const int items = g.elements / g.c * bytes;  // at most elements
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < items;
       i += static_cast<int>(gridDim.x) * kThreads) {
    const int pixel = i / bytes;
    int positions = 0;
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      const int c = i % bytes * 4 + j;
      if (c >= g.c) break;
      int position;
      y[static_cast<size_t>(pixel) * g.c + c] =
          max_over_window(x, g, pixel / g.q / g.p, pixel / g.q % g.p, pixel % g.q, c, position);
      positions |= position << (2 * j);
    }
    arg[i] = static_cast<uint8_t>(positions);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void max_pool2d_bwd_naive_kernel(
    const T* __restrict__ dy,         // [N,P,Q,C]
    const uint8_t* __restrict__ arg,  // [N,P,Q,C], or with arg2 [N,P,Q,ceil(C/4)]
    T* __restrict__ dx,               // [N,H,W,C]
    bool arg2, int elements, const __grid_constant__ PoolShape g) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    const int c = i % g.c;
    const int w = i / g.c % g.w + g.pad_w;  // in the padded image
    const int h = i / g.c / g.w % g.h + g.pad_h;
    const long long n = i / g.c / g.w / g.h;
    const int p_begin = h < g.r ? 0 : (h - g.r) / g.stride_h + 1;
    const int q_begin = w < g.s ? 0 : (w - g.s) / g.stride_w + 1;
    double sum = 0.0;
    for (int p = p_begin; p <= h / g.stride_h && p < g.p; ++p) {
      for (int q = q_begin; q <= w / g.stride_w && q < g.q; ++q) {
        const long long pixel = (n * g.p + p) * g.q + q, o = pixel * g.c + c;
        const int position = (h - p * g.stride_h) * g.s + w - q * g.stride_w;
        const int saved = arg2 ? arg[pixel * ((g.c + 3) / 4) + c / 4] >> (2 * (c % 4)) & 3 : arg[o];
        if (saved == position) sum += to_float(dy[o]);
      }
    }
    dx[i] = from_float<T>(static_cast<float>(sum));
  }
}

Support supports(const MaxPool2dProblem&, const Device&) { return Support::yes(); }

Support supports_bwd(const MaxPool2dProblem& p, const Device&) {
  return Support::require(p.arg != PoolArg::kNone, "the backward pass needs arg8 or arg2");
}

template <class T>
Plan<MaxPool2dFwd::Args> plan_fwd(const MaxPool2dProblem& p) {
  const bool arg2 = p.arg == PoolArg::kArg2;
  return make_plan<MaxPool2dFwd::Args>(
      0, [arg2, g = make_pool_shape(p)](const auto& a, void*, Stream stream) {
        const auto kernel = arg2 ? max_pool2d_fwd_naive_arg2_kernel<T> : max_pool2d_fwd_naive_kernel<T>;
        kernel<<<grid_for(g.elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), static_cast<uint8_t*>(a.arg), g);
        check_launch("max_pool2d_fwd_naive_kernel");
      });
}

template <class T>
Plan<MaxPool2dBwd::Args> plan_bwd(const MaxPool2dProblem& p) {
  const int elements = p.n * p.h * p.w * p.c;
  return make_plan<MaxPool2dBwd::Args>(0, [elements, arg2 = p.arg == PoolArg::kArg2, g = make_pool_shape(p)](
                                              const auto& a, void*, Stream stream) {
    max_pool2d_bwd_naive_kernel<T>
        <<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const uint8_t*>(a.arg), static_cast<T*>(a.dx), arg2,
            elements, g);
    check_launch("max_pool2d_bwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const MaxPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<MaxPool2dBwd> max_pool2d_bwd_naive = {
    .name = "naive",
    .supports = supports_bwd,
    .plan = [](const MaxPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
