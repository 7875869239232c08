// relu, relu6, gelu, silu fwd: y[i] = f(x[i]);  bwd: dx[i] = f'(saved[i]) dy[i], saved = y (relu, relu6) or
// x; add fwd: y[i] = a[i] + b[i];  bwd: da[i] = db[i] = dy[i].
//
// The first rung: a thread owns one element and loops with the grid's stride, one scalar access at a time.
// What rounds is computed in double, so that the fp32 kernels can judge others. No shared memory, any shape
// and alignment, deterministic. Mirrors cpu_reference/activation_naive.cpp.
#include <type_traits>

#include "kernels/activation/activation_launch.cuh"
#include "kernels/common/grid.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

// What a function is computed in.
template <class Function>
using Wide = std::conditional_t<Function::kExact, float, double>;

template <class Function, class T>
__global__ __launch_bounds__(kThreads) void map_naive_kernel(const T* __restrict__ x,  // [N,H,W,C]
                                                             T* __restrict__ y,        // [N,H,W,C]
                                                             int elements) {
  using W = Wide<Function>;
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    y[i] = from_float<T>(static_cast<float>(Function::of(static_cast<W>(to_float(x[i])))));
  }
}

template <class Function, class T>
__global__ __launch_bounds__(kThreads) void join_naive_kernel(const T* __restrict__ a,  // [N,H,W,C]
                                                              const T* __restrict__ b,  // [N,H,W,C]
                                                              T* __restrict__ out,      // [N,H,W,C]
                                                              int elements) {
  using W = Wide<Function>;
  const int stride = gridDim.x * kThreads;
  for (long long i = blockIdx.x * kThreads + threadIdx.x; i < elements; i += stride) {
    const W value = Function::of(static_cast<W>(to_float(a[i])), static_cast<W>(to_float(b[i])));
    out[i] = from_float<T>(static_cast<float>(value));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void copy_twice_naive_kernel(const T* __restrict__ dy,  // [N,H,W,C]
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

template <class T>
unsigned blocks(int elements) {
  return grid_for(elements, kThreads, kMostBlocks);
}

template <class Op>
struct UnaryFwd {
  template <class T, class Args>
  static void launch(const Args& a, int elements, cudaStream_t stream) {
    map_naive_kernel<Forward<Op>><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.x), static_cast<T*>(a.y), elements);
    check_launch("map_naive_kernel");
  }
};

template <class Op>
struct UnaryBwd {
  template <class T, class Args>
  static void launch(const Args& a, int elements, cudaStream_t stream) {
    join_naive_kernel<Backward<Op>><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(saved_of(a)), static_cast<T*>(a.dx), elements);
    check_launch("join_naive_kernel");
  }
};

struct AddFwdLaunch {
  template <class T>
  static void launch(const AddFwd::Args& a, int elements, cudaStream_t stream) {
    join_naive_kernel<Sum><<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.a), static_cast<const T*>(a.b), static_cast<T*>(a.y), elements);
    check_launch("join_naive_kernel");
  }
};

struct AddBwdLaunch {
  template <class T>
  static void launch(const AddBwd::Args& a, int elements, cudaStream_t stream) {
    copy_twice_naive_kernel<<<blocks<T>(elements), kThreads, 0, stream>>>(
        static_cast<const T*>(a.dy), static_cast<T*>(a.da), static_cast<T*>(a.db), elements);
    check_launch("copy_twice_naive_kernel");
  }
};

}  // namespace

extern const Impl<ReluFwd> relu_fwd_naive = elementwise_impl<ReluFwd, UnaryFwd<Relu>>("naive");
extern const Impl<ReluBwd> relu_bwd_naive = elementwise_impl<ReluBwd, UnaryBwd<Relu>>("naive");
extern const Impl<Relu6Fwd> relu6_fwd_naive = elementwise_impl<Relu6Fwd, UnaryFwd<Relu6>>("naive");
extern const Impl<Relu6Bwd> relu6_bwd_naive = elementwise_impl<Relu6Bwd, UnaryBwd<Relu6>>("naive");
extern const Impl<GeluFwd> gelu_fwd_naive = elementwise_impl<GeluFwd, UnaryFwd<Gelu>>("naive");
extern const Impl<GeluBwd> gelu_bwd_naive = elementwise_impl<GeluBwd, UnaryBwd<Gelu>>("naive");
extern const Impl<SiluFwd> silu_fwd_naive = elementwise_impl<SiluFwd, UnaryFwd<Silu>>("naive");
extern const Impl<SiluBwd> silu_bwd_naive = elementwise_impl<SiluBwd, UnaryBwd<Silu>>("naive");
extern const Impl<AddFwd> add_fwd_naive = elementwise_impl<AddFwd, AddFwdLaunch>("naive");
extern const Impl<AddBwd> add_bwd_naive = elementwise_impl<AddBwd, AddBwdLaunch>("naive");

}  // namespace kiln
