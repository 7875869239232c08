// max_pool2d on all cores: a thread owns rows of the output (forward: of y, backward: of cells of dx, see
// kernels/pool2d/pool2d_shape.h); the inner loops run over channels and are vectorised.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d_shape.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;  // channels whose maxima and positions stay in the L1 cache

// One output pixel, channels [begin, begin + count), its window at (h, w), which may be negative.
KILN_CPU_CLONES void max_over_window(const PoolShape& g,
                                     const float* x,  // [H,W,C], one image
                                     int h, int w, int begin, int count,
                                     float* y,                  // [C]
                                     uint8_t* arg) {            // [C] or null
  const int r0 = std::max(0, -h), r1 = std::min(g.r, g.h - h);  // the part inside the image, never empty
  const int s0 = std::max(0, -w), s1 = std::min(g.s, g.w - w);
  float best[kBlock];
  int position[kBlock];
  for (int c = 0; c < count; ++c) best[c] = -std::numeric_limits<float>::infinity();
  for (int c = 0; c < count; ++c) position[c] = r0 * g.s + s0;
  for (int r = r0; r < r1; ++r) {
    for (int s = s0; s < s1; ++s) {
      const float* tap = x + (static_cast<long long>(h + r) * g.w + w + s) * g.c + begin;
      const int at = r * g.s + s;
      for (int c = 0; c < count; ++c) {
        const bool better = (tap[c] > best[c]) | (tap[c] != tap[c]);
        best[c] = better ? tap[c] : best[c];
        position[c] = better ? at : position[c];
      }
    }
  }
  for (int c = 0; c < count; ++c) y[begin + c] = best[c];
  if (arg) {
    for (int c = 0; c < count; ++c) arg[begin + c] = static_cast<uint8_t>(position[c]);
  }
}

// dx[c] += dy[c] where the saved position is `at`.
KILN_CPU_CLONES void add_where_chosen(const float* dy, const uint8_t* arg, int at, float* dx, int channels) {
  for (int c = 0; c < channels; ++c) dx[c] += arg[c] == at ? dy[c] : 0.0f;
}

void max_pool2d_fwd(const MaxPool2dProblem& problem, const MaxPool2dFwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  const long long rows = 1LL * problem.n * g.p;
#pragma omp parallel for schedule(static) if (g.elements > 4096)
  for (long long row = 0; row < rows; ++row) {
    const long long n = row / g.p;
    const int h = static_cast<int>(row % g.p) * g.stride_h - g.pad_h;
    for (int q = 0; q < g.q; ++q) {
      const int w = q * g.stride_w - g.pad_w;
      const long long out = (row * g.q + q) * g.c;
      uint8_t* arg = a.arg ? static_cast<uint8_t*>(a.arg) + out : nullptr;
      for (int c = 0; c < g.c; c += kBlock) {
        max_over_window(g, f32(a.x) + n * g.h * g.w * g.c, h, w, c, std::min(kBlock, g.c - c), f32(a.y) + out,
                        arg);
      }
    }
  }
}

// Adds the windows over element (i, j) of cell (u, v) of image n, last to first, to dx (its channels,
// zeroed).
void gather(const PoolShape& g, const MaxPool2dBwd::Args& a, long long n, int u, int v, int i, int j,
            float* dx) {
  for (int r = i, p = u; r < g.r && p >= 0; r += g.stride_h, --p) {
    if (p >= g.p) continue;
    for (int s = j, q = v; s < g.s && q >= 0; s += g.stride_w, --q) {
      if (q >= g.q) continue;
      const long long in = ((n * g.p + p) * g.q + q) * g.c;
      add_where_chosen(f32(a.dy) + in, static_cast<const uint8_t*>(a.arg) + in, r * g.s + s, dx, g.c);
    }
  }
}

void max_pool2d_bwd(const MaxPool2dProblem& problem, const MaxPool2dBwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  const PoolCells cells_h = pool_cells(g.h, g.stride_h, g.pad_h);
  const PoolCells cells_w = pool_cells(g.w, g.stride_w, g.pad_w);
  const long long rows = 1LL * problem.n * cells_h.count;
#pragma omp parallel for schedule(static) if (g.elements > 4096)
  for (long long row = 0; row < rows; ++row) {
    const long long n = row / cells_h.count;
    const int u = cells_h.first + static_cast<int>(row % cells_h.count);
    for (int i = 0; i < g.stride_h; ++i) {
      const int h = u * g.stride_h - g.pad_h + i;
      if (h < 0 || h >= g.h) continue;
      float* dx_row = f32(a.dx) + (n * g.h + h) * g.w * g.c;
      std::fill_n(dx_row, 1LL * g.w * g.c, 0.0f);
      for (int v = cells_w.first; v < cells_w.first + cells_w.count; ++v) {
        for (int j = 0; j < g.stride_w; ++j) {
          const int w = v * g.stride_w - g.pad_w + j;
          if (w >= 0 && w < g.w) gather(g, a, n, u, v, i, j, dx_row + 1LL * w * g.c);
        }
      }
    }
  }
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_fast = cpu_impl<MaxPool2dFwd, max_pool2d_fwd>("cpu_fast");
extern const Impl<MaxPool2dBwd> max_pool2d_bwd_cpu_fast = cpu_impl<MaxPool2dBwd, max_pool2d_bwd>("cpu_fast");

}  // namespace kiln
