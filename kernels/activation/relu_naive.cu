// relu fwd: y[i] = x[i] > 0 ? x[i] : 0 (NaN stays);  relu bwd: dx[i] = y[i] > 0 ? dy[i] : 0.
//
// The first rung: a thread owns one element and loops with the grid's stride, one scalar access at a time.
// No shared memory, any shape and alignment, deterministic. Mirrors cpu_reference/activation_naive.cpp.
#include "kernels/activation/activation.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void relu_fwd_naive_kernel(const T* __restrict__ x,  // [N,H,W,C]
                                                                  T* __restrict__ y,        // [N,H,W,C]
                                                                  int elements) {
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    y[i] = to_float(x[i]) <= 0.0f ? T(0.0f) : x[i];
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void relu_bwd_naive_kernel(const T* __restrict__ dy,  // [N,H,W,C]
                                                                  const T* __restrict__ y,   // [N,H,W,C]
                                                                  T* __restrict__ dx,        // [N,H,W,C]
                                                                  int elements) {
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    dx[i] = to_float(y[i]) > 0.0f ? dy[i] : T(0.0f);
  }
}

Support supports(const ReluProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<ReluFwd::Args> plan_fwd(const ReluProblem& p) {
  return make_plan<ReluFwd::Args>(0, [p](const ReluFwd::Args& a, void*, Stream stream) {
    relu_fwd_naive_kernel<T><<<grid_for(p.elements(), kThreads, 1 << 16), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<T*>(a.y), static_cast<int>(p.elements()));
    check_launch("relu_fwd_naive_kernel");
  });
}

template <class T>
Plan<ReluBwd::Args> plan_bwd(const ReluProblem& p) {
  return make_plan<ReluBwd::Args>(0, [p](const ReluBwd::Args& a, void*, Stream stream) {
    relu_bwd_naive_kernel<T><<<grid_for(p.elements(), kThreads, 1 << 16), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.y), static_cast<T*>(a.dx),
        static_cast<int>(p.elements()));
    check_launch("relu_bwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const ReluProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<ReluBwd> relu_bwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const ReluProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
