// What the CPU implementations of max_pool2d and avg_pool2d on all cores share: how threads walk over outputs
// and over cells of the input (see kernels/pool2d/pool2d_shape.h).
#pragma once

#include <algorithm>

#include "kernels/pool2d/pool2d_shape.h"

namespace kiln {

// Calls body(image, h, w, out) for every output pixel, a thread a range of rows of y: `out` is the pixel's
// first element of y; its window begins at (h, w) of the image, which may be negative.
template <class Body>
void for_each_window(const PoolShape& g, long long images, const Body& body) {
  const long long rows = images * g.p;
#pragma omp parallel for schedule(static) if (g.elements > 4096)
  for (long long row = 0; row < rows; ++row) {
    const int h = static_cast<int>(row % g.p) * g.stride_h - g.pad_h;
    for (int q = 0; q < g.q; ++q) body(row / g.p, h, q * g.stride_w - g.pad_w, (row * g.q + q) * g.c);
  }
}

// Calls body(in, r, s) for the windows over element (i, j) of cell (u, v) of an image, last to first: `in` is
// the window's first element of y, (r, s) the element's place in it.
template <class Body>
void for_each_window_over(const PoolShape& g, long long image, int u, int v, int i, int j, const Body& body) {
  for (int r = i, p = u; r < g.r && p >= 0; r += g.stride_h, --p) {
    if (p >= g.p) continue;
    for (int s = j, q = v; s < g.s && q >= 0; s += g.stride_w, --q) {
      if (q < g.q) body(((image * g.p + p) * g.q + q) * g.c, r, s);
    }
  }
}

// dx = 0, then add(in, r, s, dx) for every pixel of dx and every window over it, a thread a range of rows of
// cells: dx points at the pixel's channels.
template <class Add>
void gather_windows(const PoolShape& g, long long images, float* dx,  // [N,H,W,C]
                    const Add& add) {
  const PoolCells cells_h = pool_cells(g.h, g.stride_h, g.pad_h);
  const PoolCells cells_w = pool_cells(g.w, g.stride_w, g.pad_w);
  const long long rows = images * cells_h.count;
#pragma omp parallel for schedule(static) if (g.elements > 4096)
  for (long long row = 0; row < rows; ++row) {
    const long long image = row / cells_h.count;
    const int u = cells_h.first + static_cast<int>(row % cells_h.count);
    for (int i = 0; i < g.stride_h; ++i) {
      const int h = u * g.stride_h - g.pad_h + i;
      if (h < 0 || h >= g.h) continue;
      float* dx_row = dx + (image * g.h + h) * g.w * g.c;
      std::fill_n(dx_row, 1LL * g.w * g.c, 0.0f);
      for (int v = cells_w.first; v < cells_w.first + cells_w.count; ++v) {
        for (int j = 0; j < g.stride_w; ++j) {
          const int w = v * g.stride_w - g.pad_w + j;
          if (w < 0 || w >= g.w) continue;
          for_each_window_over(g, image, u, v, i, j,
                               [&](long long in, int r, int s) { add(in, r, s, dx_row + 1LL * w * g.c); });
        }
      }
    }
  }
}

}  // namespace kiln
