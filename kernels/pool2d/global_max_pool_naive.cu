// global_max_pool fwd: y[n,c] = max_{h,w} x[n,h,w,c], arg its h*W+w;
// global_max_pool bwd: dx[n,h,w,c] = arg[n,c] == h*W+w ? dy[n,c] : 0.
//
// The first rung: a thread owns one element of y (fwd: it walks over the image, the first maximum stays, a
// NaN replaces everything) or of dx (bwd) and loops with the grid's stride. No shared memory, any shape and
// alignment, deterministic. Mirrors cpu_reference/global_max_pool_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

template <class T>
__global__ __launch_bounds__(kThreads) void global_max_pool_fwd_naive_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,C]
    int* __restrict__ arg,    // [N,C] or null
    int outputs, int pixels, int channels) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < outputs; i += stride) {
    const T* image = x + i / channels * pixels * channels + i % channels;
    T best = image[0];
    int position = 0;
    for (int pixel = 1; pixel < pixels; ++pixel) {
      const T v = image[static_cast<long long>(pixel) * channels];
      if (to_float(v) > to_float(best) || isnan(to_float(v))) {
        best = v;
        position = pixel;
      }
    }
    y[i] = best;
    if (arg) arg[i] = position;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void global_max_pool_bwd_naive_kernel(
    const T* __restrict__ dy,     // [N,C]
    const int* __restrict__ arg,  // [N,C]
    T* __restrict__ dx,           // [N,H,W,C]
    int elements, int pixels, int channels) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    const long long pixel = i / channels, n = pixel / pixels;
    const long long from = n * channels + i % channels;
    dx[i] = arg[from] == pixel - n * pixels ? dy[from] : T(0.0f);
  }
}

Support supports(const GlobalMaxPoolProblem&, const Device&) { return Support::yes(); }

Support supports_bwd(const GlobalMaxPoolProblem& p, const Device&) {
  return Support::require(p.arg, "the backward pass needs arg32");
}

template <class T>
Plan<GlobalMaxPoolFwd::Args> plan_fwd(const GlobalMaxPoolProblem& p) {
  return make_plan<GlobalMaxPoolFwd::Args>(0, [p](const auto& a, void*, Stream stream) {
    const int outputs = p.n * p.c;
    global_max_pool_fwd_naive_kernel<T>
        <<<grid_for(outputs, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), static_cast<int*>(a.arg), outputs, p.h * p.w,
            p.c);
    check_launch("global_max_pool_fwd_naive_kernel");
  });
}

template <class T>
Plan<GlobalMaxPoolBwd::Args> plan_bwd(const GlobalMaxPoolProblem& p) {
  return make_plan<GlobalMaxPoolBwd::Args>(0, [p](const auto& a, void*, Stream stream) {
    const int elements = p.n * p.h * p.w * p.c;
    global_max_pool_bwd_naive_kernel<T>
        <<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const int*>(a.arg), static_cast<T*>(a.dx), elements,
            p.h * p.w, p.c);
    check_launch("global_max_pool_bwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const GlobalMaxPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<GlobalMaxPoolBwd> global_max_pool_bwd_naive = {
    .name = "naive",
    .supports = supports_bwd,
    .plan = [](const GlobalMaxPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
