// Device stages that max_pool2d's and avg_pool2d's vectorised kernels share.
//
// Forward: a thread owns V channels of one output pixel (`Window`) and reads its window tap by tap. Backward:
// a thread owns V channels of one cell (pool2d_shape.h), gathers the windows over it and stores each of its
// elements once. V is 16 bytes of the tensor's type where c is a multiple of that, else 1.
#pragma once

#include "kernels/common/fast_divisor.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d_shape.h"

namespace kiln {

constexpr int kPoolThreads = 256;

// The window a thread owns: its first element in the unpadded image, which may be negative, and the thread's
// first channel.
struct PoolWindow {
  int n, h, w, c;
};

// Vector i of y.
template <int V>
__device__ __forceinline__ PoolWindow pool_window(unsigned i, const PoolShape& g) {
  const unsigned vectors = static_cast<unsigned>(g.c / V);  // of a pixel
  const unsigned pixel = i / vectors, row = pixel / g.q, n = row / g.p;
  return {static_cast<int>(n), static_cast<int>(row - n * g.p) * g.stride_h - g.pad_h,
          static_cast<int>(pixel - row * g.q) * g.stride_w - g.pad_w,
          static_cast<int>(i - pixel * vectors) * V};
}

// Element (r, s) of the window, or `outside` in the padding. kPadded: the window may reach into it.
template <class T, int V, bool kPadded>
__device__ __forceinline__ Vec<T, V> load_tap(const T* __restrict__ x,  // [N,H,W,C]
                                              const PoolShape& g, const PoolWindow& at, int r, int s,
                                              float outside) {
  const int h = at.h + r, w = at.w + s;
  const T* tap = x + static_cast<unsigned>(((at.n * g.h + h) * g.w + w) * g.c + at.c);
  if constexpr (!kPadded) {
    return Vec<T, V>::load(tap);
  } else {
    Vec<T, V> v;
#pragma unroll
    for (int j = 0; j < V; ++j) v.set(j, outside);
    if (static_cast<unsigned>(h) < static_cast<unsigned>(g.h) &&
        static_cast<unsigned>(w) < static_cast<unsigned>(g.w)) {
      v = Vec<T, V>::load(tap);
    }
    return v;
  }
}

// The cells of a backward launch, a thread each for V channels of one.
struct PoolCellGrid {
  PoolShape g;
  PoolCells rows, columns;
  unsigned threads;                             // n * rows.count * columns.count * (c / V), below 2^31
  FastDivisor by_vectors, by_columns, by_rows;  // c / V, columns.count, rows.count
};

template <class Problem>
PoolCellGrid make_pool_cell_grid(const Problem& p, int v) {
  PoolCellGrid grid = {.g = make_pool_shape(p),
                       .rows = pool_cells(p.h, p.stride_h, p.pad_h),
                       .columns = pool_cells(p.w, p.stride_w, p.pad_w),
                       .threads = 0,
                       .by_vectors = FastDivisor(static_cast<unsigned>(p.c / v)),
                       .by_columns = {},
                       .by_rows = {}};
  grid.by_columns = FastDivisor(static_cast<unsigned>(grid.columns.count));
  grid.by_rows = FastDivisor(static_cast<unsigned>(grid.rows.count));
  grid.threads = static_cast<unsigned>(p.n) * grid.rows.count * grid.columns.count * (p.c / v);
  return grid;
}

// A thread's cell (u, v) of image n, and its first channel.
struct PoolCell {
  int n, u, v, c;
};

template <int V>
__device__ __forceinline__ PoolCell pool_cell(unsigned i, const PoolCellGrid& grid) {
  const int at = static_cast<int>(i), vectors = grid.g.c / V;
  const int cell = grid.by_vectors.divide(at), row = grid.by_columns.divide(cell),
            n = grid.by_rows.divide(row);
  return {n, row - n * grid.rows.count + grid.rows.first,
          cell - row * grid.columns.count + grid.columns.first, (at - cell * vectors) * V};
}

// Whether there is a window (p, q); `at`: its element of the cell's channels in [N,P,Q,C].
__device__ __forceinline__ bool find_window(const PoolShape& g, const PoolCell& cell, int p, int q,
                                            unsigned& at) {
  at = static_cast<unsigned>(((cell.n * g.p + p) * g.q + q) * g.c + cell.c);
  return static_cast<unsigned>(p) < static_cast<unsigned>(g.p) &&
         static_cast<unsigned>(q) < static_cast<unsigned>(g.q);
}

// Stores element (i, j) of the cell where it is inside the image.
template <class T, int V>
__device__ __forceinline__ void store_cell_element(T* __restrict__ dx,  // [N,H,W,C]
                                                   const PoolShape& g, const PoolCell& cell, int i, int j,
                                                   const float (&value)[V]) {
  const int h = cell.u * g.stride_h - g.pad_h + i, w = cell.v * g.stride_w - g.pad_w + j;
  if (static_cast<unsigned>(h) >= static_cast<unsigned>(g.h) ||
      static_cast<unsigned>(w) >= static_cast<unsigned>(g.w)) {
    return;
  }
  Vec<T, V> out;
#pragma unroll
  for (int k = 0; k < V; ++k) out.set(k, value[k]);
  out.store(dx + static_cast<unsigned>(((cell.n * g.h + h) * g.w + w) * g.c + cell.c));
}

}  // namespace kiln
