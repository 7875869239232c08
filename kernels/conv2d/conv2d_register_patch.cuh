// The gathered operand of register_tile's fwd and dgrad, copied by cp.async: row m is an output pixel, and
// A[d,m] runs over the taps and channels under it, d = (i * taps_w + j) * channels + c. Channels come in
// multiples of 4, so that a 16-byte chunk lies under one tap. Where a row's window starts and which of its
// taps lie inside is found once and kept in shared memory, 8 bytes a row.
#pragma once

#include "kernels/conv2d/conv2d_patch_loader.cuh"
#include "kernels/conv2d/conv2d_register_tile.cuh"

namespace kiln {

struct alignas(8) PatchRow {
  unsigned base;  // of the first tap in the tensor, modulo 2^32: right once a tap inside is added
  unsigned taps;  // those inside; none for a row beyond the last pixel
};

// Image n, first tap at (h, w).
template <int kSign>
__device__ __forceinline__ PatchRow patch_row(const PatchShape& shape, int n, int h, int w) {
  return {((static_cast<unsigned>(n) * shape.height + h) * shape.width + w) * shape.ld,
          reached_taps<kSign>(h, shape.height, kMostTaps) | reached_taps<kSign>(w, shape.width, kMostTaps)
                                                                << 16};
}

template <class Tile, int kSign>
struct PatchCopier {
  using Map = DeepMap<Tile, Tile::kM, 1>;
  const float* x;  // [N,height,width,ld]
  const PatchShape& shape;
  const FastDivisor &by_channels, &by_taps_w;
  const PatchRow* rows;  // [kM], shared memory, visible to the block
  Map map;

  __device__ PatchCopier(const float* x, const PatchShape& shape, const FastDivisor& by_channels,
                         const FastDivisor& by_taps_w, const PatchRow* rows)
      : x(x), shape(shape), by_channels(by_channels), by_taps_w(by_taps_w), rows(rows) {}

  __device__ __forceinline__ void copy(int step, uint32_t slice) const {  // [kM][16]
    const int d = step * Tile::kDepth + map.chunk * 4;
    const int tap = by_channels.divide(d), i = by_taps_w.divide(tap);
    const int j = tap - i * shape.taps_w, c = d - tap * shape.channels;
    const auto offset = static_cast<unsigned>(kSign * (i * shape.width + j) * shape.ld + c);
    const unsigned wanted = d < shape.depth ? tap_mask(i, j) : kNoTap;
    PatchRow row[Map::kPasses];  // all read before the first copy, which the hardware keeps behind reads
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) row[pass] = rows[map.row(pass)];
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const bool inside = (wanted & ~row[pass].taps) == 0;
      cp_async16(slice + map.place(pass), x + (inside ? row[pass].base + offset : 0u), inside);
    }
  }
};

}  // namespace kiln
