// avg_pool2d fwd: y[n,p,q,c] = (1/(R*S)) sum over the window, inside the image, of x[n, p*sh+r-ph, q*sw+s-pw,
// c]; avg_pool2d bwd: dx[n,h,w,c] = (1/(R*S)) sum of dy[n,p,q,c] over the windows that hold (h,w).
//
// A thread owns V channels, 16 bytes where c is a multiple of that, else one channel (pool2d_window.cuh).
// Forward: of one output pixel; windows of 2x2 (unpadded) and 3x3 are unrolled, so that all their loads are
// in flight together. Backward: of one cell of dx; it gathers the windows over the cell, so that there is
// nothing to clear and no atomic; windows that do not overlap are read once for the whole cell. No shared
// memory. Needs 16-byte aligned tensors (make_plan checks). Deterministic: fp32 sums, forward in (r,s) order,
// backward from the last window to the first. Mirrors cpu_reference/avg_pool2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/pool2d/pool2d_window.cuh"

namespace kiln {
namespace {

template <class T, int V>
__device__ __forceinline__ void add(const Vec<T, V>& v, float (&sum)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] += v[j];
}

// kSide: the side of a square window that is unrolled, 0: any window, one tap at a time. kPadded: a window
// may reach into the padding.
template <class T, int V, int kSide, bool kPadded>
__global__ __launch_bounds__(kPoolThreads) void avg_pool2d_fwd_vectorized_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,P,Q,C]
    float share,              // 1/(R*S)
    const __grid_constant__ PoolShape g) {
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  if (i >= static_cast<unsigned>(g.elements / V)) return;
  const PoolWindow at = pool_window<V>(i, g);
  float sum[V] = {};
  if constexpr (kSide > 0) {
    Vec<T, V> taps[kSide * kSide];
#pragma unroll
    for (int k = 0; k < kSide * kSide; ++k) {
      taps[k] = load_tap<T, V, kPadded>(x, g, at, k / kSide, k % kSide, 0.0f);
    }
#pragma unroll
    for (int k = 0; k < kSide * kSide; ++k) add(taps[k], sum);
  } else {
    // The part of the window inside the image.
    const int r_end = min(g.r, g.h - at.h), s_end = min(g.s, g.w - at.w);
    for (int r = max(0, -at.h); r < r_end; ++r) {
      for (int s = max(0, -at.w); s < s_end; ++s) add(load_tap<T, V, false>(x, g, at, r, s, 0.0f), sum);
    }
  }
  Vec<T, V> out;
#pragma unroll
  for (int j = 0; j < V; ++j) out.set(j, sum[j] * share);
  out.store(y + static_cast<size_t>(i) * V);
}

// Gradient of window (p, q); zeros where there is none.
template <class T, int V>
__device__ __forceinline__ Vec<T, V> load_gradient(const T* __restrict__ dy,  // [N,P,Q,C]
                                                   const PoolShape& g, const PoolCell& cell, int p, int q) {
  Vec<T, V> v;
#pragma unroll
  for (int j = 0; j < V; ++j) v.set(j, 0.0f);
  unsigned at;
  if (find_window(g, cell, p, q, at)) v = Vec<T, V>::load(dy + at);
  return v;
}

template <class T, int V>
__device__ __forceinline__ void store_share(T* __restrict__ dx,  // [N,H,W,C]
                                            const PoolShape& g, const PoolCell& cell, int i, int j,
                                            float share, const float (&sum)[V]) {
  float value[V];
#pragma unroll
  for (int k = 0; k < V; ++k) value[k] = sum[k] * share;
  store_cell_element<T, V>(dx, g, cell, i, j, value);
}

// Square windows of kSide with stride kStride, unrolled.
template <class T, int V, int kSide, int kStride>
__global__ __launch_bounds__(kPoolThreads) void avg_pool2d_bwd_vectorized_square_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    T* __restrict__ dx,        // [N,H,W,C]
    float share,               // 1/(R*S)
    const __grid_constant__ PoolCellGrid grid) {
  constexpr int kOverlap = (kSide + kStride - 1) / kStride;
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  if (i >= grid.threads) return;
  const PoolCell cell = pool_cell<V>(i, grid);
  Vec<T, V> window[kOverlap * kOverlap];
#pragma unroll
  for (int o = 0; o < kOverlap * kOverlap; ++o) {
    window[o] = load_gradient<T, V>(dy, grid.g, cell, cell.u - o / kOverlap, cell.v - o % kOverlap);
  }
#pragma unroll
  for (int e = 0; e < kStride * kStride; ++e) {
    float sum[V] = {};
#pragma unroll
    for (int o = 0; o < kOverlap * kOverlap; ++o) {
      const int r = e / kStride + o / kOverlap * kStride, s = e % kStride + o % kOverlap * kStride;
      if (r < kSide && s < kSide) add(window[o], sum);
    }
    store_share<T, V>(dx, grid.g, cell, e / kStride, e % kStride, share, sum);
  }
}

// Any window and stride: one element of the cell at a time, which reads its windows again (from the L1
// cache).
template <class T, int V>
__global__ __launch_bounds__(kPoolThreads) void avg_pool2d_bwd_vectorized_any_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    T* __restrict__ dx,        // [N,H,W,C]
    float share,               // 1/(R*S)
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
          add(load_gradient<T, V>(dy, g, cell, p, q), sum);
        }
      }
      store_share<T, V>(dx, g, cell, row, column, share, sum);
    }
  }
}

template <class T, int V, int kSide, bool kPadded>
void launch_fwd(const AvgPool2dFwd::Args& a, const PoolShape& g, float share, Stream stream) {
  avg_pool2d_fwd_vectorized_kernel<T, V, kSide, kPadded>
      <<<grid_for(g.elements / V, kPoolThreads), kPoolThreads, 0, cuda_stream(stream)>>>(
          static_cast<const T*>(a.x), static_cast<T*>(a.y), share, g);
  check_launch("avg_pool2d_fwd_vectorized_kernel");
}

template <class T, int V, int kSide, int kStride>
void launch_bwd(const AvgPool2dBwd::Args& a, const PoolCellGrid& grid, float share, Stream stream) {
  const unsigned blocks = grid_for(grid.threads, kPoolThreads);
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  if constexpr (kSide > 0) {
    avg_pool2d_bwd_vectorized_square_kernel<T, V, kSide, kStride>
        <<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(dy, dx, share, grid);
    check_launch("avg_pool2d_bwd_vectorized_square_kernel");
  } else {
    avg_pool2d_bwd_vectorized_any_kernel<T, V>
        <<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(dy, dx, share, grid);
    check_launch("avg_pool2d_bwd_vectorized_any_kernel");
  }
}

float share_of(const AvgPool2dProblem& p) { return static_cast<float>(1.0 / (1.0 * p.r * p.s)); }

template <class T>
Plan<AvgPool2dFwd::Args> plan_fwd(const AvgPool2dProblem& p) {
  constexpr int V = kVec16<T>;
  auto run = launch_fwd<T, 1, 0, true>;
  if (p.c % V == 0) {
    run = p.r == 2 && p.s == 2 && p.pad_h == 0 && p.pad_w == 0 ? launch_fwd<T, V, 2, false>
          : p.r == 3 && p.s == 3                               ? launch_fwd<T, V, 3, true>
                                                               : launch_fwd<T, V, 0, true>;
  }
  return make_plan<AvgPool2dFwd::Args>(
      0, [run, g = make_pool_shape(p), share = share_of(p)](const auto& a, void*, Stream stream) {
        run(a, g, share, stream);
      });
}

template <class T>
Plan<AvgPool2dBwd::Args> plan_bwd(const AvgPool2dProblem& p) {
  const int V = p.c % kVec16<T> == 0 ? kVec16<T> : 1;
  auto run = launch_bwd<T, 1, 0, 0>;
  if (V > 1) {
    const auto square = [&](int side, int stride) {
      return p.r == side && p.s == side && p.stride_h == stride && p.stride_w == stride;
    };
    run = square(2, 2)   ? launch_bwd<T, kVec16<T>, 2, 2>
          : square(3, 2) ? launch_bwd<T, kVec16<T>, 3, 2>
          : square(3, 1) ? launch_bwd<T, kVec16<T>, 3, 1>
                         : launch_bwd<T, kVec16<T>, 0, 0>;
  }
  return make_plan<AvgPool2dBwd::Args>(
      0, [run, grid = make_pool_cell_grid(p, V), share = share_of(p)](const auto& a, void*, Stream stream) {
        run(a, grid, share, stream);
      });
}

Support supports(const AvgPool2dProblem&, const Device&) { return Support::yes(); }

}  // namespace

extern const Impl<AvgPool2dFwd> avg_pool2d_fwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const AvgPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_fwd<bf16>(p) : plan_fwd<float>(p);
    }};

extern const Impl<AvgPool2dBwd> avg_pool2d_bwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const AvgPool2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan_bwd<bf16>(p) : plan_bwd<float>(p);
    }};

}  // namespace kiln
