// add fwd: y[i] = a[i] + b[i];  add bwd: da[i] = db[i] = dy[i].
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
constexpr int kMostBlocks = 1 << 16;

template <class T>
__global__ __launch_bounds__(kThreads) void add_fwd_naive_kernel(const T* __restrict__ a,  // [N,H,W,C]
                                                                 const T* __restrict__ b,  // [N,H,W,C]
                                                                 T* __restrict__ y,        // [N,H,W,C]
                                                                 int elements) {
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    y[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void add_bwd_naive_kernel(const T* __restrict__ dy,  // [N,H,W,C]
                                                                 T* __restrict__ da,        // [N,H,W,C]
                                                                 T* __restrict__ db,        // [N,H,W,C]
                                                                 int elements) {
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    const T g = dy[i];
    da[i] = g;
    db[i] = g;
  }
}

Support supports(const AddProblem&, const Device&) { return Support::yes(); }

template <class T>
Plan<AddFwd::Args> plan_fwd(const AddProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<AddFwd::Args>(0, [elements](const AddFwd::Args& a, void*, Stream stream) {
    add_fwd_naive_kernel<T><<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.a), static_cast<const T*>(a.b), static_cast<T*>(a.y), elements);
    check_launch("add_fwd_naive_kernel");
  });
}

template <class T>
Plan<AddBwd::Args> plan_bwd(const AddProblem& p) {
  const int elements = static_cast<int>(p.elements());
  return make_plan<AddBwd::Args>(0, [elements](const AddBwd::Args& a, void*, Stream stream) {
    add_bwd_naive_kernel<T><<<grid_for(elements, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<T*>(a.da), static_cast<T*>(a.db), elements);
    check_launch("add_bwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<AddFwd> add_fwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const AddProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<AddBwd> add_bwd_naive = {
    .name = "naive",
    .supports = supports,
    .plan = [](const AddProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
