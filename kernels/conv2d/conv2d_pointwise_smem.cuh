// Shared memory of the pointwise product (conv2d_pointwise.cuh): the block's layout and the staging tiles
// through which a warpgroup's 64 rows leave.
//
// A staging tile holds bf16 in 16-byte chunks. Where the block's tile has all columns (linear), its rows
// follow each other as they do in memory, and the copy engine sees lines of 64 elements; else it is boxes of
// kSpan columns x 64 rows. Either way TMA's swizzle exchanges the chunks so that the eight addresses of an
// 8x8 matrix lie in different banks, or in as few common ones as can be.
#pragma once

#include "kernels/common/mbarrier.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_epilogue_staged.cuh"

namespace kiln {

template <int kBN_, int kBK_, int kBlocks_ = 1>
struct PointwiseConfig {
  static constexpr int kBM = 128, kBN = kBN_, kBK = kBK_;
  static constexpr int kBlocks = kBlocks_;            // of a multiprocessor
  static constexpr int kGroups = 2, kGroupRows = 64;  // consumer warpgroups, rows of each
  static constexpr int kThreads = kGroups * 128 + 32;
  static constexpr int kSpan = kBN % 64 == 0 ? 64 : 32;  // columns of a box of out and of a dgrad filter
  static constexpr int kABytes = kBM * kBK * 2, kBBytes = kBN * kBK * 2;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kMaxStages = 16;
  static constexpr bool kStats = kBlocks == 1 && kBN <= 128;  // else registers lack for sums
  static constexpr bool kCounts = false;
  // Short tiles, several to a row of out: a tile's store starts before the tile is counted.
  static constexpr bool kCountsBehind = kBN == 64;
  static constexpr int kBarrierBytes = (2 * kMaxStages + 2 * kGroups) * 8;
  // The most that a block may take of shared memory on compute capability 9.0.
  static constexpr int kSmemBytes = kBlocks == 1 ? 227 * 1024 : 113 * 1024;
  static_assert(kBlocks == 1 || kBlocks == 2, "shared memory is shared out for one or two blocks");
  static_assert(kBK == 32 || kBK == 64, "a row of a slice is one swizzle span");
  static_assert(kBN % kSpan == 0 && kBN <= 192, "whole boxes; accumulators fit in registers");
  static_assert(kBBytes % kAlignment == 0, "tiles start a swizzle pattern");
};

struct PointwiseShape {
  int rows;     // pixels
  int columns;  // output channels
  int slices;   // of kBK source channels
  int row_tiles, column_tiles;
  int splits;       // 2: the blocks of a cluster share a tile's slices; else 1
  int stages;       // of the ring
  bool resident;    // the filter's column tile stays in shared memory
  bool accumulate;  // out +=
  bool linear;      // the tile has all columns, out is seen as lines of 64 elements
  int pitch;        // staging: 16-byte chunks from one row to the next of the same box
  int box_shift;    // staging: log2 of a box's chunks in a row; linear: one box
  int swizzle;      // staging: bits of a chunk's place that are exchanged; 7, 3 or 0
  int stage_bytes;
  int staging_bytes;            // of one staging tile
  int group_bytes;              // from the first staging tile of a warpgroup to that of the next
  int ring, staging, barriers;  // bytes from the aligned start of shared memory
};

// Shared memory of a block by 32-bit shared addresses; the resident filter comes first.
template <class Config>
struct PointwiseSmem {
  uint32_t base;
  const PointwiseShape& g;
  __device__ __forceinline__ uint32_t a(int stage) const { return base + g.ring + stage * g.stage_bytes; }
  __device__ __forceinline__ uint32_t b(int stage, int slice) const {
    return g.resident ? base + slice * Config::kBBytes : a(stage) + Config::kABytes;
  }
  __device__ __forceinline__ uint32_t staging(int group, int buffer) const {
    return base + g.staging + group * g.group_bytes + buffer * g.staging_bytes;
  }
  __device__ __forceinline__ uint32_t full(int stage) const { return base + g.barriers + stage * 8; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kMaxStages + stage); }
  __device__ __forceinline__ uint32_t old(int group, int buffer) const {
    return full(2 * Config::kMaxStages + 2 * group + buffer);
  }
};

// The boxes of a warpgroup's staging tile, and where they lie in out.
template <class Config, class Copy>
__device__ __forceinline__ void for_staged_boxes(uint32_t staging, int first_row, int first_column,
                                                 const PointwiseShape& g, Copy copy) {
  if (g.linear) {
    copy(staging, 0, first_row / Config::kGroupRows * g.columns);
  } else {
#pragma unroll
    for (int box = 0; box < Config::kBN / Config::kSpan; ++box) {
      copy(staging + box * Config::kGroupRows * Config::kSpan * 2, first_column + box * Config::kSpan,
           first_row);
    }
  }
}

// Starts the copy of out's old values into a staging tile that no store reads any more. One thread.
template <class Config>
__device__ __forceinline__ void load_old(const CUtensorMap* out, uint32_t staging, uint32_t barrier,
                                         int first_row, int first_column, const PointwiseShape& g) {
  mbarrier_arrive_expect(barrier, g.staging_bytes);
  for_staged_boxes<Config>(staging, first_row, first_column, g,
                           [&](uint32_t to, int i0, int i1) { tma_load_4d(to, out, barrier, i0, i1, 0, 0); });
}

__device__ __forceinline__ uint32_t staged_chunk(int row, int chunk, const PointwiseShape& g) {
  const int in_box = chunk & ((1 << g.box_shift) - 1);
  const int place =
      ((chunk >> g.box_shift) << g.box_shift) * PointwiseConfig<32, 32>::kGroupRows + row * g.pitch + in_box;
  return static_cast<uint32_t>(place ^ (place >> 3 & g.swizzle)) * 16;
}

__device__ __forceinline__ float2 staged_pair(uint32_t address) {
  uint32_t pair;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(pair) : "r"(address) : "memory");
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// Rounds a warp's 16 rows into the staging tile; stmatrix takes the accumulators as they lie. With `adds` the
// tile holds what is added to them. count(at, pair): sees pair `at` as it is stored, two of each pair of
// columns.
template <class Config, bool kDgrad, bool kFused, class Count = NotCounted>
__device__ __forceinline__ void stage_rows(const float (&acc)[Config::kBN / 2], uint32_t staging,
                                           int first_column, const float* __restrict__ bias,
                                           const StagedEpilogue<kFused>& fused, bool adds,
                                           const PointwiseShape& g, const Count& count = {}) {
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 4 * 16;
  const int chunks = g.linear ? g.columns / 8 : Config::kBN / 8;
  // Two chunks of 8 columns at once: pairs[0], [1] are rows 0-7 and 8-15 of chunk j, [2], [3] of the next.
#pragma unroll
  for (int j = 0; j < Config::kBN / 8; j += 2) {
    if (j >= chunks) break;
    const bool both = j + 1 < chunks;
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = j + i / 2, column = first_column + chunk * 8 + 2 * (lane % 4);
      float2 add = make_float2(0.0f, 0.0f);
      if ((kDgrad || kFused) && adds && chunk < chunks) {
        add = staged_pair(staging + staged_chunk(warp_row + i % 2 * 8 + lane / 4, chunk, g) + lane % 4 * 4);
      }
      if (!kDgrad && !kFused && bias != nullptr && column < g.columns) {
        add = *reinterpret_cast<const float2*>(bias + column);
      }
      const float* v = &acc[4 * chunk + i % 2 * 2];
      float2 sum = make_float2(v[0], v[1]);
      if constexpr (!Config::kCounts) {
        sum = fused.template finish<kDgrad>(v[0], v[1], add, column, g.columns);
      }
      const __nv_bfloat162 pair = __floats2bfloat162_rn(sum.x, sum.y);
      pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
      count(2 * chunk + i % 2, pairs[i]);
    }
    if ((kDgrad || kFused) && adds) __syncwarp();  // old values are read before their place is written
    const uint32_t to = staging + staged_chunk(warp_row + lane % 16, j + (both ? lane / 16 : 0), g);
    if (both) {
      stmatrix_x4(to, pairs);
    } else {
      asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};\n" ::"r"(to), "r"(pairs[0]),
                   "r"(pairs[1])
                   : "memory");
    }
  }
}

}  // namespace kiln
