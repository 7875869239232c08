// The gathered product of fwd and stride-1 dgrad on Hopper's tensor cores (sm_90a):
//
//   out[m, j] = addend + sum_{r,s,c} src[pixel(m) displaced by (r,s), c] * filter(j, r, s, c)
//
// Rows m are output pixels, columns j output channels, the sum runs over filter taps and slices of kBK
// channels. Blocks are persistent; a tile is kBM x kBN outputs. One producer thread starts the TMA copies:
// the A tile is gathered by im2col mode (the copy engine walks the pixels and writes zeros for padding and
// beyond the last channel or image), the B tile is a box of the filter as it lies in memory. Two consumer
// warpgroups multiply with wgmma, each kMTiles x 64 rows. A ring of kStages stages with full and empty
// mbarriers joins them, so that copies of the next tile go on under the epilogue. With kCluster = 2 two
// blocks work on neighbouring row tiles, each loads half of the B tile and sends it to both. Deterministic:
// one thread sums an output, in a fixed order.
#pragma once

#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/conv2d/conv2d_gate.h"
#include "kernels/conv2d/conv2d_stats_store.cuh"

namespace kiln {

template <int kBM_, int kBN_, int kBK_, int kStages_, int kCluster_ = 1>
struct WgmmaConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kStages = kStages_, kCluster = kCluster_;
  static constexpr int kConsumers = 2;  // warpgroups; one more holds the producer
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kMTiles = kBM / (kConsumers * 64);  // m64 products of a warpgroup
  static constexpr int kColumnSpan =
      kBN < 64 ? kBN : 64;  // columns staged at once; span of an MN-major B tile
  static constexpr int kABytes = kBM * kBK * 2, kBBytes = kBN * kBK * 2;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStoreBytes = kConsumerWarps * 16 * kColumnSpan * 2;  // a warp stages 16 rows
  static constexpr int kBarrierBytes = 2 * kStages * 8;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kSmemBytes = kStages * kStageBytes + kStoreBytes + kBarrierBytes + kAlignment;
  static constexpr bool kStats = kBN <= 64 && kCluster == 1;  // wider tiles leave no registers for statistics
  // Registers a thread after setmaxnreg: 128 * 40 + 256 * 232 = 64,512 of 65,536.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kBM % (kConsumers * 64) == 0 && kBM <= 256, "a warpgroup owns whole m64 products");
  static_assert(kBK == 32 || kBK == 64, "a row of a tile is one swizzle span");
  static_assert(kBN == 32 || kBN % (64 * kCluster) == 0, "blocks of a cluster load whole 64-column boxes");
  static_assert(kMTiles * kBN <= 256, "accumulators must fit in registers");
  static_assert(kStageBytes % kAlignment == 0 && kABytes % kAlignment == 0, "tiles start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

// dgrad with drelu or drelu6: what decides which results stay.
struct WgmmaGate {
  const bf16* x = nullptr;  // [N,H,W,C], null without
  Conv2dGate of = {};
};

struct WgmmaShape {
  int rows;                // output pixels, N * out_h * out_w
  int out_h, out_w;        // output map
  int src_c;               // gathered channels
  int columns;             // output channels
  int r, s;                // filter
  int stride_h, stride_w;  // source pixels from one output pixel to the next
  int origin_h, origin_w;  // source position of output pixel (0, 0) under displacement (0, 0)
  int row_tiles, column_tiles;
  int steps;            // stages a tile: taps x channel slices
  bool accumulate;      // out +=
  WgmmaGate gate = {};  // of dgrad
};

struct GatheredShape {
  WgmmaShape g;
  Conv2dEpilogue epilogue = {};  // of the fused kernel
};

// Shared memory of a block by 32-bit shared addresses.
template <class Config>
struct WgmmaSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t store() const { return base + Config::kStages * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return store() + Config::kStoreBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
};

// The tiles of a cluster, columns fastest, so that blocks at work together share rows in L2. With clusters
// the last row tile may lie wholly beyond the last row: it loads zeros and stores nothing.
template <class Config>
struct TileWalk {
  int item, column_tiles, items;
  __device__ __forceinline__ explicit TileWalk(const WgmmaShape& g)
      : item(blockIdx.x / Config::kCluster),
        column_tiles(g.column_tiles),
        items((g.row_tiles + Config::kCluster - 1) / Config::kCluster * g.column_tiles) {}
  __device__ __forceinline__ bool done() const { return item >= items; }
  __device__ __forceinline__ void next() { item += gridDim.x / Config::kCluster; }
  __device__ __forceinline__ int first_row() const {
    return (item / column_tiles * Config::kCluster + blockIdx.x % Config::kCluster) * Config::kBM;
  }
  __device__ __forceinline__ int first_column() const { return item % column_tiles * Config::kBN; }
};

// Starts the copies of this block's part of a B tile: channels from c0 of filter tap `tap`.
template <class Config, bool kDgrad>
__device__ __forceinline__ void load_filter_tile(const CUtensorMap* filter, uint32_t tile, uint32_t barrier,
                                                 int first_column, int tap, int c0) {
  constexpr uint16_t kAll = (1 << Config::kCluster) - 1;
  const auto load = [&](uint32_t to, int i0, int i2) {
    if constexpr (Config::kCluster == 1) {
      tma_load_3d(to, filter, barrier, i0, tap, i2);
    } else {
      tma_load_3d_multicast(to, filter, barrier, kAll, i0, tap, i2);
    }
  };
  const int rank = blockIdx.x % Config::kCluster;
  if constexpr (kDgrad) {  // boxes of kBK rows (dy's channels) x kColumnSpan columns
    constexpr int kBoxes = Config::kBN / Config::kColumnSpan / Config::kCluster;
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) {
      const int box = rank * kBoxes + i;
      load(tile + box * Config::kBK * Config::kColumnSpan * 2, first_column + box * Config::kColumnSpan, c0);
    }
  } else {  // rows are columns of the product, kBK channels each
    constexpr int kRows = Config::kBN / Config::kCluster;
    load(tile + rank * kRows * Config::kBK * 2, c0, first_column + rank * kRows);
  }
}

// The producer thread: fills stages in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void produce(const CUtensorMap* src, const CUtensorMap* filter,
                                        WgmmaSmem<Config> smem, const WgmmaShape& g) {
  tma_prefetch_map(src);
  tma_prefetch_map(filter);
  RingPosition<Config::kStages> at;
  for (TileWalk<Config> tile(g); !tile.done(); tile.next()) {
    const int image = tile.first_row() / (g.out_h * g.out_w), pixel = tile.first_row() % (g.out_h * g.out_w);
    const int h = pixel / g.out_w * g.stride_h + g.origin_h, w = pixel % g.out_w * g.stride_w + g.origin_w;
    const int taps = g.r * g.s;
    for (int r = 0, tap = 0; r < g.r; ++r) {
      for (int s = 0; s < g.s; ++s, ++tap) {
        for (int c0 = 0; c0 < g.src_c; c0 += Config::kBK) {
          mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
          mbarrier_arrive_expect(smem.full(at.stage), Config::kStageBytes);
          tma_load_im2col(smem.a(at.stage), src, smem.full(at.stage), c0, w, h, image, s, r);
          // dgrad gathers dy with the filter turned by 180 degrees.
          load_filter_tile<Config, kDgrad>(filter, smem.b(at.stage), smem.full(at.stage), tile.first_column(),
                                           kDgrad ? taps - 1 - tap : tap, c0);
          at.advance();
        }
      }
    }
  }
}

// Starts the products of one stage for a warpgroup's rows. `add`: 0 where this is the tile's first stage.
template <class Config, bool kDgrad>
__device__ __forceinline__ void multiply_stage(float (&acc)[Config::kMTiles][Config::kBN / 2],
                                               uint32_t a_tile, uint32_t b_tile, int add) {
  const uint64_t a = k_major_descriptor<Config::kBK>(a_tile);
  const uint64_t b =
      kDgrad ? mn_major_descriptor<Config::kColumnSpan>(b_tile, Config::kBK * Config::kColumnSpan * 2)
             : k_major_descriptor<Config::kBK>(b_tile);
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
    const uint64_t b16 = advance_descriptor(b, k16 * (kDgrad ? 16 * Config::kColumnSpan * 2 : 32));
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      const uint64_t a16 = advance_descriptor(a, i * 64 * Config::kBK * 2 + k16 * 32);
      Wgmma<Config::kBN, 0, kDgrad>::multiply(acc[i], a16, b16, k16 > 0 ? 1 : add);
    }
  }
}

// A consumer warpgroup: multiplies the stages of each tile and stores its rows.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void consume(WgmmaSmem<Config> smem, unsigned char* store, const float* bias,
                                        bf16* out, const GatheredShape& shape) {
  const WgmmaShape& g = shape.g;
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group_row = warp / 4 * Config::kMTiles * 64;           // first row of the warpgroup in the tile
  unsigned char* staging = store + warp * 16 * Config::kColumnSpan * 2;
  const auto release = [&](int stage) {  // once a warp, to each block that writes this stage
    if constexpr (Config::kCluster == 1) {
      if (lane == 0) mbarrier_arrive(smem.empty(stage));
    } else {
      if (lane < Config::kCluster) mbarrier_arrive_remote(smem.empty(stage), lane);
    }
  };
  constexpr bool kCounted = kFused && Config::kStats;  // with statistics, where they are asked for
  float acc[Config::kMTiles][Config::kBN / 2] = {};
  const bf16* joined = joined_tensor<kDgrad, kFused>(g, shape.epilogue, out);
  RingPosition<Config::kStages> at;
  TileStats<Config> stats;
  for (TileWalk<Config> tile(g); !tile.done(); tile.next()) {
    const int row = tile.first_row() + group_row, column = tile.first_column();
    const auto slices = [&](const auto& visit) {
      for_row_slices<Config>(warp, row, column, g.rows, g.columns, visit);
    };
    JoinedTile<Config, kFused ? 1 : 2> held;
    int previous = 0;
    for (int step = 0; step < g.steps; ++step) {
      mbarrier_wait(smem.full(at.stage), at.parity);
#pragma unroll
      for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
      wgmma_fence();
      multiply_stage<Config, kDgrad>(acc, smem.a(at.stage) + group_row * Config::kBK * 2, smem.b(at.stage),
                                     step > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
      if (step > 0) release(previous);
      previous = at.stage;
      at.advance();
    }
    if (joined) held.begin(joined, slices);  // they come under the last products
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    release(previous);
    if (kCounted && shape.epilogue.stats.mean) {
      store_counted_tile<Config>(acc, store, warp, row, column, g.rows, g.columns, out, shape.epilogue,
                                 stats);
    } else {
      store_product<kDgrad, kFused>(acc, staging, held, joined, out, bias, column, shape.epilogue, g, slices);
    }
  }
  if (kCounted && shape.epilogue.stats.mean) {
    finish_stats<Config::kConsumerWarps>(stats, smem.base, shape.epilogue.stats, blockIdx.x % g.column_tiles,
                                         blockIdx.x / g.column_tiles, g.columns);
  }
}

template <class Config, bool kDgrad, bool kFused>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_gather_wgmma_kernel(
    const __grid_constant__ CUtensorMap src,     // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]; im2col
    const __grid_constant__ CUtensorMap filter,  // w [K,RS,C]
    const float* __restrict__ bias,              // [K] or null (fwd)
    bf16* __restrict__ out,                      // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
    const __grid_constant__ GatheredShape shape) {
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const WgmmaSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kConsumerWarps * Config::kCluster);
    }
    fence_barrier_init();
  }
  if constexpr (Config::kCluster == 1) {
    __syncthreads();  // barriers are initialised
  } else {
    cluster_sync();  // in both blocks
  }
  if (threadIdx.x / 128 == Config::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) produce<Config, kDgrad>(&src, &filter, smem, shape.g);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    consume<Config, kDgrad, kFused>(smem, raw + (smem.store() - start), bias, out, shape);
  }
  if constexpr (Config::kCluster > 1)
    cluster_sync();  // no block leaves while the other may still write to it
}

}  // namespace kiln
