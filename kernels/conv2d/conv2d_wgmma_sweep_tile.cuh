// Tiles of the sweep over padded maps (conv2d_wgmma_sweep.cuh): their sizes, the rings that a block fills
// and where these lie in its shared memory, and which tiles are its own.
#pragma once

#include "kernels/conv2d/conv2d_wgmma.cuh"

namespace kiln {

template <int kBM_, int kBN_, int kBK_, int kTeam_>
struct SweepConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kTeam = kTeam_, kCluster = 1;
  static constexpr int kConsumers = 2, kTeams = kConsumers / kTeam;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kMTiles = kBM / (kTeam * 64);  // m64 products of a warpgroup
  static constexpr int kColumnSpan = kBN < 64 ? kBN : 64;
  static constexpr int kPixelBytes = kBK * 2, kBStageBytes = kBN * kBK * 2;
  static constexpr int kMaxAStages = 8, kMaxBStages = 48;
  static constexpr int kBarrierBytes = 1024, kStoreBytes = kConsumerWarps * 16 * kColumnSpan * 2;
  static constexpr int kAlignment = 1024;
  static constexpr int kSmemBytes = 227 * 1024;
  static constexpr int kRingBytes =
      kSmemBytes - kAlignment - kBarrierBytes - kStoreBytes;  // filter and source
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kTeam == 1 || kTeam == 2, "one warpgroup a tile, or both");
  static_assert(kBM % (kTeam * 64) == 0 && kMTiles * kBN <= 256, "whole m64 products, in registers");
  static_assert(kBK == 32 || kBK == 64, "a pixel is one swizzle span");
  static_assert(kBStageBytes % kAlignment == 0, "filter tiles start a swizzle pattern");
  static_assert((3 * kMaxAStages + 2 * kMaxBStages) * 8 <= kBarrierBytes, "room for the barriers");
};

struct SweepShape {
  WgmmaShape g;       // rows: those of the sweep, N * image_pixels
  int pitch;          // pixels of a padded map row
  int image_pixels;   // pixels of a padded image
  int loads;          // im2col loads of a copy of the source
  int load_pixels;    // of one of them
  int a_stage_bytes;  // loads * load_pixels pixels, rounded up to the swizzle's period
  int a_stages, b_stages;
  int copies;                    // of the source a slice of channels: 1, or S, each displaced by its s
  bool resident;                 // the filter stays in its ring
  Conv2dEpilogue epilogue = {};  // of the fused kernel
};

// A ring whose length is known at launch.
struct SweepRing {
  int stages, stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int count = 1) {
    for (stage += count; stage >= stages; stage -= stages) parity ^= 1;
  }
};

// Shared memory: barriers, staging of stores, filter tiles, copies of the source.
template <class Config>
struct SweepSmem {
  uint32_t base;  // aligned to the swizzle's period
  int a_stage_bytes, b_stages;
  __device__ __forceinline__ uint32_t store() const { return base + Config::kBarrierBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const {
    return store() + Config::kStoreBytes + stage * Config::kBStageBytes;
  }
  __device__ __forceinline__ uint32_t a(int stage) const { return b(b_stages) + stage * a_stage_bytes; }
  // Where warpgroups take turns each has full barriers of its own, or one that is ahead could take the end of
  // a phase for that of the phase after the next.
  __device__ __forceinline__ uint32_t a_full(int team, int stage) const {
    return base + (team * Config::kMaxAStages + stage) * 8;
  }
  __device__ __forceinline__ uint32_t a_empty(int stage) const { return a_full(2, stage); }
  __device__ __forceinline__ uint32_t b_full(int stage) const { return a_full(3, stage); }
  __device__ __forceinline__ uint32_t b_empty(int stage) const { return b_full(Config::kMaxBStages + stage); }
};

// The row tiles of a block, or of every step-th one from `first`; its column tile stays.
template <class Config>
struct SweepWalk {
  int tile, step, tiles, column;
  __device__ __forceinline__ SweepWalk(const WgmmaShape& g, int first, int every)
      : tiles(g.row_tiles), column(blockIdx.x % g.column_tiles * Config::kBN) {
    const int blocks = gridDim.x / g.column_tiles;
    tile = blockIdx.x / g.column_tiles + first * blocks;
    step = every * blocks;
  }
  __device__ __forceinline__ bool done() const { return tile >= tiles; }
  __device__ __forceinline__ void next() { tile += step; }
  __device__ __forceinline__ int first_row() const { return tile * Config::kBM; }
};

}  // namespace kiln
