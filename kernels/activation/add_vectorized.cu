// add fwd: y[i] = a[i] + b[i];  add bwd: da[i] = db[i] = dy[i].
//
// A thread owns 16 bytes (8 bf16 or 4 fp32) and moves them with one access a tensor, so that a warp moves 512
// contiguous bytes an instruction; the last elements that fill no vector go to the first threads one by one.
// Sums are rounded once, from fp32. No shared memory. Needs 16-byte aligned tensors (make_plan checks).
// Deterministic. Mirrors cpu_reference/activation_naive.cpp.
#include "kernels/activation/activation.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void add_fwd_vectorized_kernel(const T* __restrict__ a,  // [N,H,W,C]
                                                                      const T* __restrict__ b,  // [N,H,W,C]
                                                                      T* __restrict__ y,        // [N,H,W,C]
                                                                      int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    const auto left = Vec<T, V>::load(a + static_cast<size_t>(i) * V);
    const auto right = Vec<T, V>::load(b + static_cast<size_t>(i) * V);
    Vec<T, V> sum;
#pragma unroll
    for (int j = 0; j < V; ++j) sum.set(j, left[j] + right[j]);
    sum.store(y + static_cast<size_t>(i) * V);
  }
  const int tail = vectors * V + i;
  if (i < V && tail < elements) y[tail] = from_float<T>(to_float(a[tail]) + to_float(b[tail]));
}

template <class T>
__global__ __launch_bounds__(kThreads) void add_bwd_vectorized_kernel(const T* __restrict__ dy,  // [N,H,W,C]
                                                                      T* __restrict__ da,        // [N,H,W,C]
                                                                      T* __restrict__ db,        // [N,H,W,C]
                                                                      int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    const auto g = Vec<T, V>::load(dy + static_cast<size_t>(i) * V);
    g.store(da + static_cast<size_t>(i) * V);
    g.store(db + static_cast<size_t>(i) * V);
  }
  const int tail = vectors * V + i;
  if (i < V && tail < elements) da[tail] = db[tail] = dy[tail];
}

Support supports(const AddProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<AddFwd::Args> plan_fwd(const AddProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<AddFwd::Args>(0, [elements](const AddFwd::Args& a, void*, Stream stream) {
    add_fwd_vectorized_kernel<T>
        <<<grid_for(elements, kThreads * kVec16<T>), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.a), static_cast<const T*>(a.b), static_cast<T*>(a.y), elements);
    check_launch("add_fwd_vectorized_kernel");
  });
}

template <class T>
Plan<AddBwd::Args> plan_bwd(const AddProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<AddBwd::Args>(0, [elements](const AddBwd::Args& a, void*, Stream stream) {
    add_bwd_vectorized_kernel<T>
        <<<grid_for(elements, kThreads * kVec16<T>), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<T*>(a.da), static_cast<T*>(a.db), elements);
    check_launch("add_bwd_vectorized_kernel");
  });
}

}  // namespace

extern const Impl<AddFwd> add_fwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const AddProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<AddBwd> add_bwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const AddProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
