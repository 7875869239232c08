// avg_pool2d fwd: y[n,p,q,c] = (1/(R*S)) sum over the window, inside the image, of x[n, p*sh+r-ph, q*sw+s-pw,
// c]; avg_pool2d bwd: dx[n,h,w,c] = (1/(R*S)) sum of dy[n,p,q,c] over the windows that hold (h,w).
//
// The first rung: a thread owns one element of y (fwd) or dx (bwd), sums in double and loops with the grid's
// stride. The backward pass gathers: it visits the windows over its element in (p,q) order. No shared memory,
// any shape and alignment, deterministic. Mirrors cpu_reference/avg_pool2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d_shape.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

template <class T>
__global__ __launch_bounds__(kThreads) void avg_pool2d_fwd_naive_kernel(const T* __restrict__ x,  // [N,H,W,C]
                                                                        T* __restrict__ y,        // [N,P,Q,C]
                                                                        const __grid_constant__ PoolShape g) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < g.elements; i += stride) {
    const int c = i % g.c;
    const int q = i / g.c % g.q;
    const int p = i / g.c / g.q % g.p;
    const long long n = i / g.c / g.q / g.p;
    double sum = 0.0;
    for (int r = 0; r < g.r; ++r) {
      for (int s = 0; s < g.s; ++s) {
        const int h = p * g.stride_h + r - g.pad_h;
        const int w = q * g.stride_w + s - g.pad_w;
        if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
        sum += to_float(x[((n * g.h + h) * g.w + w) * g.c + c]);
      }
    }
    y[i] = from_float<T>(static_cast<float>(sum / (1.0 * g.r * g.s)));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void avg_pool2d_bwd_naive_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    T* __restrict__ dx,        // [N,H,W,C]
    int elements, const __grid_constant__ PoolShape g) {
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
        sum += to_float(dy[((n * g.p + p) * g.q + q) * g.c + c]);
      }
    }
    dx[i] = from_float<T>(static_cast<float>(sum / (1.0 * g.r * g.s)));
  }
}

Support supports(const AvgPool2dProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<AvgPool2dFwd::Args> plan_fwd(const AvgPool2dProblem& p) {
  return make_plan<AvgPool2dFwd::Args>(0, [g = make_pool_shape(p)](const auto& a, void*, Stream stream) {
    avg_pool2d_fwd_naive_kernel<T>
        <<<grid_for(g.elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), g);
    check_launch("avg_pool2d_fwd_naive_kernel");
  });
}

template <class T>
Plan<AvgPool2dBwd::Args> plan_bwd(const AvgPool2dProblem& p) {
  const int elements = p.n * p.h * p.w * p.c;
  return make_plan<AvgPool2dBwd::Args>(
      0, [elements, g = make_pool_shape(p)](const auto& a, void*, Stream stream) {
        avg_pool2d_bwd_naive_kernel<T>
            <<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
                static_cast<const T*>(a.dy), static_cast<T*>(a.dx), elements, g);
        check_launch("avg_pool2d_bwd_naive_kernel");
      });
}

}  // namespace

extern const Impl<AvgPool2dFwd> avg_pool2d_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const AvgPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<AvgPool2dBwd> avg_pool2d_bwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const AvgPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
