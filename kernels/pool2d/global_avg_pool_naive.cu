// global_avg_pool fwd: y[n,c] = mean_{h,w} x[n,h,w,c];  bwd: dx[n,h,w,c] = dy[n,c] / (H*W).
//
// The first rung: a thread owns one element of y (fwd, summed over the image in double) or of dx (bwd) and
// loops with the grid's stride. No shared memory, any shape and alignment, deterministic. Mirrors
// cpu_reference/global_avg_pool_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

template <class T>
__global__ __launch_bounds__(kThreads) void global_avg_pool_fwd_naive_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,C]
    int outputs, int pixels, int channels) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < outputs; i += stride) {
    const T* image = x + i / channels * pixels * channels + i % channels;
    double sum = 0.0;
    for (long long pixel = 0; pixel < pixels; ++pixel) sum += to_float(image[pixel * channels]);
    y[i] = from_float<T>(static_cast<float>(sum / pixels));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void global_avg_pool_bwd_naive_kernel(
    const T* __restrict__ dy,  // [N,C]
    T* __restrict__ dx,        // [N,H,W,C]
    int elements, int pixels, int channels) {
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    const long long n = i / channels / pixels;
    const double g = to_float(dy[n * channels + i % channels]);
    dx[i] = from_float<T>(static_cast<float>(g / pixels));
  }
}

Support supports(const GlobalAvgPoolProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<GlobalAvgPoolFwd::Args> plan_fwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolFwd::Args>(0, [p](const auto& a, void*, Stream stream) {
    const int outputs = p.n * p.c;
    global_avg_pool_fwd_naive_kernel<T>
        <<<grid_for(outputs, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), outputs, p.h * p.w, p.c);
    check_launch("global_avg_pool_fwd_naive_kernel");
  });
}

template <class T>
Plan<GlobalAvgPoolBwd::Args> plan_bwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolBwd::Args>(0, [p](const auto& a, void*, Stream stream) {
    const int elements = p.n * p.h * p.w * p.c;
    global_avg_pool_bwd_naive_kernel<T>
        <<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<T*>(a.dx), elements, p.h * p.w, p.c);
    check_launch("global_avg_pool_bwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<GlobalAvgPoolFwd> global_avg_pool_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const GlobalAvgPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<GlobalAvgPoolBwd> global_avg_pool_bwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const GlobalAvgPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
