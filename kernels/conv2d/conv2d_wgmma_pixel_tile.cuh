// Tiles of the product by output pixels (conv2d_wgmma_pixel.cuh): their sizes, which pixel, images and taps
// they are, who computes them, and the block's shared memory.
//
// A tile is kBM images x kBN columns of one output pixel. The pixels that all taps serve are a rectangle and
// come first, in rounds of one tile a block; the tiles of the others, and what is left of the first, are
// unequal and come from a list that the host has dealt.
#pragma once

#include <algorithm>

#include "kernels/common/host_device.h"
#include "kernels/common/mbarrier.cuh"

namespace kiln {

template <int kBM_, int kBN_, int kStages_, bool kPingPong_>
struct PixelConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = 64, kStages = kStages_;
  static constexpr bool kPingPong = kPingPong_;
  static constexpr int kCluster = 1, kColumnSpan = 64;  // columns of a box of out and of a dgrad filter
  static constexpr int kGroups = 2,
                       kThreads = (kGroups + 1) * 128;  // consumer warpgroups; and the producer's
  // With tiles in turns columns are summed under the other's products.
  static constexpr bool kStats = kPingPong && kBM == 128 && kBN == 128;
  static constexpr bool kCounts = false;
  static constexpr int kGroupRows = kPingPong ? kBM : kBM / kGroups;
  static constexpr int kMTiles = kGroupRows / 64;     // m64 products of a warpgroup
  static constexpr int kReaders = kPingPong ? 4 : 8;  // warps that read a stage
  static constexpr int kABytes = kBM * kBK * 2, kBBytes = kBN * kBK * 2;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kBarriers = 2 * kStages + 2 * kGroups;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kStagingRoom = 227 * 1024 - kAlignment - kBarriers * 8 - kStages * kStageBytes;
  static constexpr int staging_bytes(int columns) { return kGroupRows * columns * 2; }  // of a warpgroup
  static constexpr bool staging_fits(int columns) {
    return columns % kColumnSpan == 0 && kGroups * staging_bytes(columns) <= kStagingRoom;
  }
  // Columns staged at once: as many as the stages leave room for.
  static constexpr int kStoreColumns = staging_fits(kBN)       ? kBN
                                       : staging_fits(kBN / 2) ? kBN / 2
                                                               : kColumnSpan;
  static constexpr int kStagingBytes = staging_bytes(kStoreColumns);
  static constexpr int kBoxBytes = staging_bytes(kColumnSpan);  // a box of results
  static constexpr int kSmemBytes =
      kStages * kStageBytes + kGroups * kStagingBytes + kBarriers * 8 + kAlignment;
  // Registers a thread after setmaxnreg: 128 * 40 + 256 * 232 = 64,512 of 65,536.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kGroupRows % 64 == 0 && kBM <= 256,
                "a warpgroup owns whole m64 products, a box holds the rows");
  static_assert(kBN % kColumnSpan == 0 && kBN <= 256, "tiles are whole boxes of columns");
  static_assert(kMTiles * kBN / 2 <= 192, "accumulators must fit in registers");
  static_assert(kStageBytes % kAlignment == 0 && kABytes % kAlignment == 0, "tiles start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

struct PixelShape {
  int images, out_h, out_w, src_h, src_w;
  int src_c, columns;      // gathered channels, output channels
  int r, s;                // filter
  int stride_h, stride_w;  // source pixels from one output pixel to the next
  int origin_h, origin_w;  // source position of output pixel (0, 0) under tap (0, 0)
  int parity_h, parity_w;  // strides of dgrad's convolution: a pixel meets every so many-th tap
  int column_tiles;
  // Pixels that all taps serve, a rectangle. Their tiles are the first: column tiles fastest, then pixels,
  // then images. After them those of the other pixels in the same order.
  int inner_h, inner_w, inner_rows, inner_cols;
  int inner_tiles;
  bool accumulate;  // out +=
};

// Who computes which tiles: block b has tiles b, b + blocks, ... of the first `rounds` rounds, then
// rest[first[b]], ... rest[first[b + 1] - 1], counted from tile rounds * blocks on.
struct PixelSchedule {
  static constexpr int kMaxBlocks = 160, kMaxRest = 1024;
  int rounds;
  uint16_t first[kMaxBlocks + 1];
  uint16_t rest[kMaxRest];
};

// Shared memory of a block by 32-bit shared addresses.
template <class Config>
struct PixelSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t staging(int group) const {
    return base + Config::kStages * Config::kStageBytes + group * Config::kStagingBytes;
  }
  __device__ __forceinline__ uint32_t full(int stage) const { return staging(Config::kGroups) + stage * 8; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
  __device__ __forceinline__ uint32_t turn(int group) const { return full(2 * Config::kStages + group); }
  __device__ __forceinline__ uint32_t old(int group) const {
    return full(2 * Config::kStages + Config::kGroups + group);
  }
};

// A tile: where it lies in out, and the taps [r0, r1) x [s0, s1) that meet the map; where none does, one,
// which reads zeros. Behind dgrad's strides taps are those of the pixel's parity, by number.
struct PixelTile {
  int image, p, q, column;  // image and column: the first
  int h, w;                 // source position under tap (0, 0)
  int r0, r1, s0, s1;
  int first_r, first_s;  // dgrad: place in the filter of tap (0, 0); later taps lie before it
  bool empty;            // no tap meets the map
  KILN_HOST_DEVICE int taps() const { return (r1 - r0) * (s1 - s0); }
};

// One axis of dgrad for the pixels of a parity: taps that they meet, the place of the first in the filter,
// and its source position.
struct PixelParity {
  int taps, first, source;
  KILN_HOST_DEVICE PixelParity(int pixel, int origin, int stride, int filter) {
    const int padded = pixel + origin + filter - 1, remainder = padded % stride;
    taps = remainder < filter ? (filter - remainder - 1) / stride + 1 : 0;
    first = remainder + (taps - 1) * stride;
    source = taps > 0 ? padded / stride - (taps - 1) : -1;
  }
};

template <class Config>
KILN_HOST_DEVICE inline PixelTile pixel_tile(const PixelShape& g, int tile) {
  PixelTile t;
  const int inner_pixels = g.inner_rows * g.inner_cols;
  const bool inner = tile < g.inner_tiles;
  const int index = inner ? tile : tile - g.inner_tiles;
  const int pixels = inner ? inner_pixels : g.out_h * g.out_w - inner_pixels;
  const int pixel = index / g.column_tiles % pixels;
  t.column = index % g.column_tiles * Config::kBN;
  t.image = index / g.column_tiles / pixels * Config::kBM;
  const int above = g.inner_h * g.out_w, sides = g.out_w - g.inner_cols;
  if (inner) {
    t.p = g.inner_h + pixel / g.inner_cols;
    t.q = g.inner_w + pixel % g.inner_cols;
  } else if (pixel < above) {
    t.p = pixel / g.out_w;
    t.q = pixel % g.out_w;
  } else if (pixel < above + sides * g.inner_rows) {  // left and right of the rectangle
    const int column = (pixel - above) % sides;
    t.p = g.inner_h + (pixel - above) / sides;
    t.q = column < g.inner_w ? column : column + g.inner_cols;
  } else {  // below it
    const int below = pixel - above - sides * g.inner_rows;
    t.p = g.inner_h + g.inner_rows + below / g.out_w;
    t.q = below % g.out_w;
  }
  t.h = t.p * g.stride_h + g.origin_h;
  t.w = t.q * g.stride_w + g.origin_w;
  t.first_r = g.r - 1;
  t.first_s = g.s - 1;
  int taps_h = g.r, taps_w = g.s;
  if (g.parity_h * g.parity_w > 1) {
    const PixelParity rows(t.p, g.origin_h, g.parity_h, g.r), cols(t.q, g.origin_w, g.parity_w, g.s);
    t.h = rows.source, taps_h = rows.taps, t.first_r = rows.first;
    t.w = cols.source, taps_w = cols.taps, t.first_s = cols.first;
  }
  t.r0 = max(0, -t.h), t.r1 = min(taps_h, g.src_h - t.h);
  t.s0 = max(0, -t.w), t.s1 = min(taps_w, g.src_w - t.w);
  t.empty = t.r0 >= t.r1 || t.s0 >= t.s1;
  if (t.empty) t.r0 = t.s0 = 0, t.r1 = t.s1 = 1;
  return t;
}

// The tiles of this block.
struct PixelWalk {
  int turn = 0;
  const PixelSchedule& schedule;
  __device__ __forceinline__ explicit PixelWalk(const PixelSchedule& s) : schedule(s) {}
  __device__ __forceinline__ int count() const {
    return schedule.rounds + schedule.first[blockIdx.x + 1] - schedule.first[blockIdx.x];
  }
  __device__ __forceinline__ bool done() const { return turn >= count(); }
  __device__ __forceinline__ int tile() const {
    const int later = turn - schedule.rounds;
    return later < 0 ? turn * static_cast<int>(gridDim.x) + blockIdx.x
                     : schedule.rounds * static_cast<int>(gridDim.x) +
                           schedule.rest[schedule.first[blockIdx.x] + later];
  }
};

// A place in the ring of stages, as RingPosition, that can pass over the stages of the other's tile.
template <int kStages>
struct PixelRing : RingPosition<kStages> {
  __device__ __forceinline__ void skip(int steps) {
    const int later = this->stage + steps;
    this->parity ^= later / kStages & 1;
    this->stage = later % kStages;
  }
};

}  // namespace kiln
