// relu, relu6, gelu, silu fwd: y[i] = f(x[i]);  bwd: dx[i] = f'(saved[i]) dy[i], saved = y (relu, relu6) or
// x; add fwd: y[i] = a[i] + b[i];  bwd: da[i] = db[i] = dy[i].
//
// A thread owns 16 bytes (8 bf16 or 4 fp32) and loads them with one access, so that a warp moves 512
// contiguous bytes an instruction; the last elements that fill no vector go to the first threads one by one.
// Computed in fp32, rounded once. No shared memory. Needs 16-byte aligned tensors (make_plan checks).
// Deterministic. Mirrors cpu_reference/activation_naive.cpp.
#include "kernels/activation/activation_launch.cuh"
#include "kernels/common/grid.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class Function, class T>
__global__ __launch_bounds__(kThreads) void map_vectorized_kernel(const T* __restrict__ x,  // [N,H,W,C]
                                                                  T* __restrict__ y,        // [N,H,W,C]
                                                                  int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    const auto in = Vec<T, V>::load(x + static_cast<size_t>(i) * V);
    Vec<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.set(j, Function::of(in[j]));
    out.store(y + static_cast<size_t>(i) * V);
  }
  if (i < elements - vectors * V) {
    const int tail = vectors * V + i;
    y[tail] = from_float<T>(Function::of(to_float(x[tail])));
  }
}

template <class Function, class T>
__global__ __launch_bounds__(kThreads) void join_vectorized_kernel(const T* __restrict__ a,  // [N,H,W,C]
                                                                   const T* __restrict__ b,  // [N,H,W,C]
                                                                   T* __restrict__ out,      // [N,H,W,C]
                                                                   int elements) {
  constexpr int V = kVec16<T>;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = elements / V;
  if (i < vectors) {
    const auto left = Vec<T, V>::load(a + static_cast<size_t>(i) * V);
    const auto right = Vec<T, V>::load(b + static_cast<size_t>(i) * V);
    Vec<T, V> joined;
#pragma unroll
    for (int j = 0; j < V; ++j) joined.set(j, Function::of(left[j], right[j]));
    joined.store(out + static_cast<size_t>(i) * V);
  }
  if (i < elements - vectors * V) {
    const int tail = vectors * V + i;
    out[tail] = from_float<T>(Function::of(to_float(a[tail]), to_float(b[tail])));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void copy_twice_vectorized_kernel(
    const T* __restrict__ dy,  // [N,H,W,C]
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
  if (i < elements - vectors * V) {
    const int tail = vectors * V + i;
    da[tail] = db[tail] = dy[tail];
  }
}

template <class T>
unsigned blocks(int elements) {
  return grid_for(elements, kThreads * kVec16<T>);
}

template <class Op>
struct UnaryFwd {
  template <class T, class Args>
  static void launch(const Args& a, int elements, cudaStream_t stream) {
    map_vectorized_kernel<Forward<Op>><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.x), static_cast<T*>(a.y), elements);
    check_launch("map_vectorized_kernel");
  }
};

template <class Op>
struct UnaryBwd {
  template <class T, class Args>
  static void launch(const Args& a, int elements, cudaStream_t stream) {
    join_vectorized_kernel<Backward<Op>><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(saved_of(a)), static_cast<T*>(a.dx), elements);
    check_launch("join_vectorized_kernel");
  }
};

struct AddFwdLaunch {
  template <class T>
  static void launch(const AddFwd::Args& a, int elements, cudaStream_t stream) {
    join_vectorized_kernel<Sum><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.a), static_cast<const T*>(a.b), static_cast<T*>(a.y), elements);
    check_launch("join_vectorized_kernel");
  }
};

struct AddBwdLaunch {
  template <class T>
  static void launch(const AddBwd::Args& a, int elements, cudaStream_t stream) {
    copy_twice_vectorized_kernel<<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.dy), static_cast<T*>(a.da), static_cast<T*>(a.db), elements);
    check_launch("copy_twice_vectorized_kernel");
  }
};

}  // namespace

extern const Impl<ReluFwd> relu_fwd_vectorized = elementwise_impl<ReluFwd, UnaryFwd<Relu>>("vectorized");
extern const Impl<ReluBwd> relu_bwd_vectorized = elementwise_impl<ReluBwd, UnaryBwd<Relu>>("vectorized");
extern const Impl<Relu6Fwd> relu6_fwd_vectorized = elementwise_impl<Relu6Fwd, UnaryFwd<Relu6>>("vectorized");
extern const Impl<Relu6Bwd> relu6_bwd_vectorized = elementwise_impl<Relu6Bwd, UnaryBwd<Relu6>>("vectorized");
extern const Impl<GeluFwd> gelu_fwd_vectorized = elementwise_impl<GeluFwd, UnaryFwd<Gelu>>("vectorized");
extern const Impl<GeluBwd> gelu_bwd_vectorized = elementwise_impl<GeluBwd, UnaryBwd<Gelu>>("vectorized");
extern const Impl<SiluFwd> silu_fwd_vectorized = elementwise_impl<SiluFwd, UnaryFwd<Silu>>("vectorized");
extern const Impl<SiluBwd> silu_bwd_vectorized = elementwise_impl<SiluBwd, UnaryBwd<Silu>>("vectorized");
extern const Impl<AddFwd> add_fwd_vectorized = elementwise_impl<AddFwd, AddFwdLaunch>("vectorized");
extern const Impl<AddBwd> add_bwd_vectorized = elementwise_impl<AddBwd, AddBwdLaunch>("vectorized");

}  // namespace kiln
