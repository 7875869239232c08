// The gathered operand of fwd and dgrad: row m is an output pixel, and A[d,m] runs over the taps and channels
// under it, d = (i * taps_w + j) * channels + c.
#pragma once

#include <climits>

#include "kernels/conv2d/conv2d_smem_tile.cuh"

namespace kiln {

// The tensor that is gathered from, [N,height,width,ld], and the taps. Tap (i,j) of a pixel lies at
// (h0 + kSign*i, w0 + kSign*j).
struct PatchShape {
  int height, width, channels, ld;
  int taps_w, depth;  // depth = taps_h * taps_w * channels
};

template <class T, class Tile, int V, int kSign>
struct PatchLoader {
  using Map = TransposeMap<Tile, V, Tile::kM>;
  const T* x;  // [N,height,width,ld]
  const PatchShape& shape;
  const FastDivisor &by_channels, &by_taps_w;
  Map map;
  int h0[Map::kPasses], w0[Map::kPasses];
  unsigned base[Map::kPasses];  // of (h0, w0), modulo 2^32: right once a tap inside is added
  Vec<T, V> staged[Map::kPasses];

  __device__ PatchLoader(const T* x, const PatchShape& shape, const FastDivisor& by_channels,
                         const FastDivisor& by_taps_w)
      : x(x), shape(shape), by_channels(by_channels), by_taps_w(by_taps_w) {}

  // The pixel of row map.row(pass): image n, first tap at (h, w).
  __device__ void set_pixel(int pass, int n, int h, int w) {
    h0[pass] = h;
    w0[pass] = w;
    base[pass] = ((static_cast<unsigned>(n) * shape.height + h) * shape.width + w) * shape.ld;
  }
  // A row beyond the last pixel: all its taps are outside.
  __device__ void set_nothing(int pass) { h0[pass] = w0[pass] = INT_MIN / 2, base[pass] = 0; }

  __device__ __forceinline__ void load(int step) {
    const int d = step * Tile::kDepth + map.vector * V;
    const int tap = by_channels.divide(d), i = by_taps_w.divide(tap);
    const int j = tap - i * shape.taps_w, c = d - tap * shape.channels;
    const auto offset = static_cast<unsigned>(kSign * (i * shape.width + j) * shape.ld + c);
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const auto h = static_cast<unsigned>(h0[pass] + kSign * i),
                 w = static_cast<unsigned>(w0[pass] + kSign * j);
      const bool inside = d < shape.depth && h < static_cast<unsigned>(shape.height) &&
                          w < static_cast<unsigned>(shape.width);
      staged[pass] = inside ? Vec<T, V>::load(x + (base[pass] + offset)) : Vec<T, V>{};
    }
  }
  __device__ __forceinline__ void store(float* slice) const {  // [kDepth][kM]
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) map.store(staged[pass], pass, slice);
  }
};

}  // namespace kiln
