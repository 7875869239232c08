// relu fwd: y[i] = x[i] > 0 ? x[i] : 0 (NaN stays);  relu bwd: dx[i] = y[i] > 0 ? dy[i] : 0.
//
// A thread owns 16 bytes (8 bf16 or 4 fp32) and loads them with one access, so that a warp moves 512
// contiguous bytes an instruction; the last elements that fill no vector go to the first threads one by one.
// No shared memory. Needs 16-byte aligned tensors (make_plan checks). Deterministic. Mirrors
// cpu_reference/activation_naive.cpp.
#include "kernels/activation/activation.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__device__ __forceinline__ T relu(T x) {
  return to_float(x) <= 0.0f ? T(0.0f) : x;
}

template <class T>
__global__ __launch_bounds__(kThreads) void relu_fwd_vectorized_kernel(const T* __restrict__ x,  // [N,H,W,C]
                                                                       T* __restrict__ y,        // [N,H,W,C]
                                                                       int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    auto v = Vec<T, V>::load(x + static_cast<size_t>(i) * V);
#pragma unroll
    for (int j = 0; j < V; ++j) v.v[j] = relu(v.v[j]);
    v.store(y + static_cast<size_t>(i) * V);
  }
  const int tail = vectors * V + i;
  if (i < V && tail < elements) y[tail] = relu(x[tail]);
}

template <class T>
__global__ __launch_bounds__(kThreads) void relu_bwd_vectorized_kernel(const T* __restrict__ dy,  // [N,H,W,C]
                                                                       const T* __restrict__ y,   // [N,H,W,C]
                                                                       T* __restrict__ dx,        // [N,H,W,C]
                                                                       int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    auto g = Vec<T, V>::load(dy + static_cast<size_t>(i) * V);
    const auto out = Vec<T, V>::load(y + static_cast<size_t>(i) * V);
#pragma unroll
    for (int j = 0; j < V; ++j) g.v[j] = out[j] > 0.0f ? g.v[j] : T(0.0f);
    g.store(dx + static_cast<size_t>(i) * V);
  }
  const int tail = vectors * V + i;
  if (i < V && tail < elements) dx[tail] = to_float(y[tail]) > 0.0f ? dy[tail] : T(0.0f);
}

Support supports(const ReluProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<ReluFwd::Args> plan_fwd(const ReluProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<ReluFwd::Args>(0, [elements](const ReluFwd::Args& a, void*, Stream stream) {
    relu_fwd_vectorized_kernel<T>
        <<<grid_for(elements, kThreads * kVec16<T>), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), elements);
    check_launch("relu_fwd_vectorized_kernel");
  });
}

template <class T>
Plan<ReluBwd::Args> plan_bwd(const ReluProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<ReluBwd::Args>(0, [elements](const ReluBwd::Args& a, void*, Stream stream) {
    relu_bwd_vectorized_kernel<T>
        <<<grid_for(elements, kThreads * kVec16<T>), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const T*>(a.y), static_cast<T*>(a.dx), elements);
    check_launch("relu_bwd_vectorized_kernel");
  });
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const ReluProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<ReluBwd> relu_bwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const ReluProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
