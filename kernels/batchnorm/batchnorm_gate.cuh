// What the fast batchnorm backward does with a row of dy: g = dy where the activation passed, or dy times its
// slope. u is recomputed from x with the arithmetic of batchnorm_math.h; behind a residual the mask decides.
#pragma once

#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"

namespace kiln {
namespace {

// What lets dy pass: the clamp of u, the mask, or the slope at u.
struct ByClamp {
  static constexpr bool kMasked = false, kSmooth = false;
  static constexpr int kSumRows = 4;
};
struct ByMask {
  static constexpr bool kMasked = true;
  static constexpr int kSumRows = 4;
};
struct BySlope {
  static constexpr bool kMasked = false, kSmooth = true;
  static constexpr int kSumRows = 2;
};

// A thread's way through the mask: `at` is the byte of its channels in the row at hand, `shift` their first
// bit. Offsets are modulo 2^32 (the mask is smaller than x), so that steps may go backwards.
struct MaskWalk {
  const unsigned char* mask;  // [M,ceil(C/8)]
  unsigned at, step;
  int shift;

  // Begins at the slice's row `row` and steps by `direction`, 1 or -1.
  template <class Gate, int V>
  __device__ __forceinline__ static MaskWalk begin(const unsigned char* __restrict__ mask,
                                                   const BatchnormTile& tile, const BatchnormSlice& s,
                                                   int row, int direction) {
    if constexpr (!Gate::kMasked) return {};
    const unsigned row_bytes = (static_cast<unsigned>(tile.channels) + 7) / 8;
    const unsigned first = static_cast<unsigned>(s.first_row + row * tile.block_rows) * row_bytes;
    // With 8 channels a thread, each has a byte of its own.
    return {mask, first + s.channel / 8, direction * tile.block_rows * row_bytes, V == 8 ? 0 : s.channel % 8};
  }
  // The bits of the row `u` rows on.
  __device__ __forceinline__ unsigned bits(int u) const { return mask[at + u * step] >> shift; }
  __device__ __forceinline__ void advance(int rows) { at += rows * step; }
};

template <class Gate, int kRows, bool kFull>
__device__ __forceinline__ void load_bits(const MaskWalk& mask, int left, unsigned (&bits)[kRows]) {
  if constexpr (Gate::kMasked) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (kFull || u < left) bits[u] = mask.bits(u);
    }
  }
}

// g of one row from its dy; d is x - mean, bits the mask's.
template <class Gate, class T, int V>
__device__ __forceinline__ void gate(const Vec<T, V>& dy, const float (&d)[V], unsigned bits,
                                     const Channels<V>& ch, const BatchnormActivation& activation,
                                     float (&g)[V]) {
  if constexpr (Gate::kMasked) {
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = bits >> v & 1 ? dy[v] : 0.0f;
  } else if constexpr (!Gate::kSmooth) {
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = activation.clamp.passes(ch.pre(v, d[v])) ? dy[v] : 0.0f;
  } else if (activation.act == BatchnormAct::kGelu) {  // one branch a row
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = dy[v] * gelu_slope(ch.pre(v, d[v]));
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = dy[v] * silu_slope(ch.pre(v, d[v]));
  }
}

// Adds g and g * d of kRows rows in registers to their sums, `left` of them unless kFull.
template <class Gate, int kRows, bool kFull, class T, int V>
__device__ __forceinline__ void sum_rows(const Vec<T, V>* dy_rows, const Vec<T, V>* x_rows,
                                         const unsigned (&bits)[kRows], int left, const Channels<V>& ch,
                                         const BatchnormActivation& activation, float (&sum_g)[V],
                                         float (&sum_gd)[V]) {
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    if (kFull || u < left) {
      float d[V], g[V];
#pragma unroll
      for (int v = 0; v < V; ++v) d[v] = batchnorm_centre(x_rows[u][v], ch.mean[v]);
      gate<Gate>(dy_rows[u], d, bits[u], ch, activation, g);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum_g[v] += g[v];
        sum_gd[v] += g[v] * d[v];
      }
    }
  }
}

// Stores dx and dresidual of kRows rows in registers, `step` elements apart. mean_g = dbeta/M, slope = rstd *
// dgamma/M.
template <class Gate, int kRows, bool kFull, Store kStore, class T, int V>
__device__ __forceinline__ void gradient_rows(Vec<T, V>* dy_rows, Vec<T, V>* x_rows,
                                              const unsigned (&bits)[kRows], T* __restrict__ dx,
                                              T* __restrict__ dresidual, ptrdiff_t step, int left,
                                              const Channels<V>& ch, const float (&mean_g)[V],
                                              const float (&slope)[V],
                                              const BatchnormActivation& activation) {
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    if (kFull || u < left) {
      float d[V], g[V];
#pragma unroll
      for (int v = 0; v < V; ++v) d[v] = batchnorm_centre(x_rows[u][v], ch.mean[v]);
      gate<Gate>(dy_rows[u], d, bits[u], ch, activation, g);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        x_rows[u].set(v, ch.scale[v] * (g[v] - mean_g[v] - d[v] * slope[v]));
        if constexpr (Gate::kMasked) dy_rows[u].set(v, g[v]);
      }
      store_row<kStore>(x_rows[u], dx + u * step);
      if constexpr (Gate::kMasked) store_row<kStore>(dy_rows[u], dresidual + u * step);
    }
  }
}

}  // namespace
}  // namespace kiln
