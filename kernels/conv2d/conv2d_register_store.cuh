// How the passes of register_tile and register_tma store a thread's results, Tile::kTm pixels x Tile::kTn
// channels in groups of four neighbours. Pixels are placed as RegisterPlace<Tile, true> says.
#pragma once

#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_register_tile.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {

// fwd: with a bias at most, or with all of the epilogue.
template <class Tile, bool kFused>
__device__ __forceinline__ void store_outputs(const float (&acc)[Tile::kTm][Tile::kTn], unsigned first_m,
                                              unsigned pixels, int first_k, int K,
                                              const float* bias,  // [K] or null, not of the fused
                                              const Conv2dEpilogue& e,
                                              float* y) {  // [pixels,K]
  const RegisterPlace<Tile, true> place;
#pragma unroll
  for (int g = 0; g < Tile::kTn; g += 4) {
    const int k = first_k + place.n(g);
    float b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = !kFused && bias && k + j < K ? bias[k + j] : 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kTm; ++i) {
      const unsigned m = first_m + place.m(i);
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = kFused ? acc[i][g + j] : acc[i][g + j] + b[j];
      if (m >= pixels) continue;
      const size_t at = static_cast<size_t>(m) * K + k;
      if constexpr (kFused) finish_four<float>(v, e, at, k, K);
      store4(y + at, v, K - k, K % 4 == 0, false);
    }
  }
}

// dgrad: one pixel's. Channels from C to c_stride have seen zeros only.
template <class Tile>
__device__ __forceinline__ void store_gradients(const float (&row)[Tile::kTn], const Conv2dShape& p,
                                                unsigned pixel, int first_c,
                                                const float* x,  // as dx, or null
                                                float* dx) {     // [N,H,W,c_stride]
  const RegisterPlace<Tile, true> place;
  const size_t first = static_cast<size_t>(pixel) * p.c_stride;
#pragma unroll
  for (int g = 0; g < Tile::kTn; g += 4) {
    const int c = first_c + place.n(g);
    float v[4] = {row[g], row[g + 1], row[g + 2], row[g + 3]};
    if (x) gate4(x + first + c, v, p.c_stride - c, p.c_stride % 4 == 0, p.gate);
    store4(dx + first + c, v, p.c_stride - c, p.c_stride % 4 == 0, p.accumulate);
  }
}

}  // namespace kiln
