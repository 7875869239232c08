// max_pool2d bwd: dx[n,h,w,c] = sum of dy[n,p,q,c] over the windows whose saved position is (h,w), saved in a
// byte or two bits.
//
// A thread owns V channels of one cell: the stride_h x stride_w patch of dx that begins where a window begins
// (pool2d_shape.h); V is 16 bytes of dx where c is a multiple of that, else 1. It gathers: it compares the
// saved positions of the windows over the cell with each element's own and writes every element once, zeros
// where no window reaches, so there is nothing to clear and no atomic. Windows that do not overlap are read
// once for the whole cell. No shared memory. Needs 16-byte aligned tensors (make_plan checks). Deterministic:
// sums run in fp32 over the windows from the last to the first. Mirrors cpu_reference/max_pool2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/pool2d/pool2d_window.cuh"

namespace kiln {
namespace {

// Gradient and saved positions of window (p, q); zeros where there is none.
template <class T, int V, PoolArg kArg>
struct WindowGradient {
  Vec<T, V> dy;
  Vec<uint8_t, V> arg;

  __device__ __forceinline__ WindowGradient(const T* __restrict__ dy_in,         // [N,P,Q,C]
                                            const uint8_t* __restrict__ arg_in,  // of kArg's shape
                                            const PoolShape& g, const PoolCell& cell, int p, int q) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      dy.set(j, 0.0f);
      arg.v[j] = 0;
    }
    unsigned at;
    if (find_window(g, cell, p, q, at)) {
      dy = Vec<T, V>::load(dy_in + at);
      if constexpr (kArg == PoolArg::kArg8) {
        arg = Vec<uint8_t, V>::load(arg_in + at);
      } else if constexpr (V == 1) {
        const unsigned pixel = static_cast<unsigned>((cell.n * g.p + p) * g.q + q);
        arg.v[0] = arg_in[pixel * ((g.c + 3) / 4) + cell.c / 4] >> (2 * (cell.c % 4)) & 3;
      } else {
        const Vec<uint8_t, V / 4> four = Vec<uint8_t, V / 4>::load(arg_in + at / 4);
#pragma unroll
        for (int j = 0; j < V; ++j) arg.v[j] = four.v[j / 4] >> (2 * (j % 4)) & 3;
      }
    }
  }
  __device__ __forceinline__ void add_to(float (&sum)[V], int position) const {
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += arg.v[j] == position ? dy[j] : 0.0f;
  }
};

// Square windows of kSide with stride kStride, unrolled.
template <class T, int V, int kSide, int kStride, PoolArg kArg>
__global__ __launch_bounds__(kPoolThreads) void max_pool2d_bwd_vectorized_square_kernel(
    const T* __restrict__ dy,         // [N,P,Q,C]
    const uint8_t* __restrict__ arg,  // kArg8: [N,P,Q,C]; kArg2: [N,P,Q,ceil(C/4)]
    T* __restrict__ dx,               // [N,H,W,C]
    const __grid_constant__ PoolCellGrid grid) {
  constexpr int kOverlap = (kSide + kStride - 1) / kStride;
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  if (i >= grid.threads) return;
  const PoolCell cell = pool_cell<V>(i, grid);
  float sum[kStride * kStride][V] = {};
#pragma unroll
  for (int o = 0; o < kOverlap * kOverlap; ++o) {
    const int k = o / kOverlap, l = o % kOverlap;
    const WindowGradient<T, V, kArg> window(dy, arg, grid.g, cell, cell.u - k, cell.v - l);
#pragma unroll
    for (int e = 0; e < kStride * kStride; ++e) {
      const int r = e / kStride + k * kStride, s = e % kStride + l * kStride;
      if (r < kSide && s < kSide) window.add_to(sum[e], r * kSide + s);
    }
  }
#pragma unroll
  for (int e = 0; e < kStride * kStride; ++e) {
    store_cell_element<T, V>(dx, grid.g, cell, e / kStride, e % kStride, sum[e]);
  }
}

// Any window and stride: one element of the cell at a time, which reads its windows again (from the L1
// cache).
template <class T, int V, PoolArg kArg>
__global__ __launch_bounds__(kPoolThreads) void max_pool2d_bwd_vectorized_any_kernel(
    const T* __restrict__ dy,         // [N,P,Q,C]
    const uint8_t* __restrict__ arg,  // kArg8: [N,P,Q,C]; kArg2: [N,P,Q,ceil(C/4)]
    T* __restrict__ dx,               // [N,H,W,C]
    const __grid_constant__ PoolCellGrid grid) {
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  if (i >= grid.threads) return;
  const PoolCell cell = pool_cell<V>(i, grid);
  const PoolShape& g = grid.g;
  for (int row = 0; row < g.stride_h; ++row) {
    for (int column = 0; column < g.stride_w; ++column) {
      float sum[V] = {};
      for (int r = row, p = cell.u; r < g.r && p >= 0; r += g.stride_h, --p) {
        for (int s = column, q = cell.v; s < g.s && q >= 0; s += g.stride_w, --q) {
          WindowGradient<T, V, kArg>(dy, arg, g, cell, p, q).add_to(sum, r * g.s + s);
        }
      }
      store_cell_element<T, V>(dx, g, cell, row, column, sum);
    }
  }
}

template <class T, int V, int kSide, int kStride, PoolArg kArg>
void launch(const MaxPool2dBwd::Args& a, const PoolCellGrid& grid, Stream stream) {
  const unsigned blocks = grid_for(grid.threads, kPoolThreads);
  const T* dy = static_cast<const T*>(a.dy);
  const uint8_t* arg = static_cast<const uint8_t*>(a.arg);
  T* dx = static_cast<T*>(a.dx);
  if constexpr (kSide > 0) {
    max_pool2d_bwd_vectorized_square_kernel<T, V, kSide, kStride, kArg>
        <<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(dy, arg, dx, grid);
    check_launch("max_pool2d_bwd_vectorized_square_kernel");
  } else {
    max_pool2d_bwd_vectorized_any_kernel<T, V, kArg>
        <<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(dy, arg, dx, grid);
    check_launch("max_pool2d_bwd_vectorized_any_kernel");
  }
}

using Launch = void (*)(const MaxPool2dBwd::Args&, const PoolCellGrid&, Stream);

template <class T, PoolArg kArg>
Launch launcher(const MaxPool2dProblem& p) {
  constexpr int V = kVec16<T>;
  if (p.c % V != 0) return launch<T, 1, 0, 0, kArg>;
  if (p.stride_h == 2 && p.stride_w == 2 && p.r == p.s) {
    if (p.r == 2) return launch<T, V, 2, 2, kArg>;
    if constexpr (kArg != PoolArg::kArg2) {
      if (p.r == 3) return launch<T, V, 3, 2, kArg>;
    }
  }
  return launch<T, V, 0, 0, kArg>;
}

template <class T>
Plan<MaxPool2dBwd::Args> plan(const MaxPool2dProblem& p) {
  const int V = p.c % kVec16<T> == 0 ? kVec16<T> : 1;
  const Launch run =
      p.arg == PoolArg::kArg2 ? launcher<T, PoolArg::kArg2>(p) : launcher<T, PoolArg::kArg8>(p);
  return make_plan<MaxPool2dBwd::Args>(0, [run, grid = make_pool_cell_grid(p, V)](
                                              const auto& a, void*, Stream stream) { run(a, grid, stream); });
}

}  // namespace

extern const Impl<MaxPool2dBwd> max_pool2d_bwd_vectorized = {
    .name = "vectorized",
    .supports =
        [](const MaxPool2dProblem& p, const Device&) {
          return Support::require(p.arg != PoolArg::kNone, "the backward pass needs arg8 or arg2");
        },
    .plan =
        [](const MaxPool2dProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
        }};

}  // namespace kiln
