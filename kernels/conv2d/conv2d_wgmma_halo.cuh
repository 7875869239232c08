// The gathered product of conv2d_wgmma.cuh for stride 1, with the filter's rows reading one copy of the
// source:
//
//   out[m, j] = addend + sum_{c,s,r} src[pixel(m) displaced by (r,s), c] * filter(j, r, s, c)
//
// A tile's kBM output pixels are whole map rows: kBM / W rows of one image, or whole images. For a filter
// column s and a slice of kBK channels TMA copies these rows and the R-1 beyond them, displaced by s, once
// (zeros outside of the map): the halo. In shared memory a pixel is 2 * kBK bytes, so the tile of filter
// row r starts r * W * 2 * kBK bytes further on, a whole number of swizzle patterns where W is a multiple
// of 8. Source traffic falls from R*S copies of the tile to S*(rows+R-1)/rows. Halos and filter tiles have
// rings of their own; a filter that fits in its ring, with one column tile, is loaded once a block and stays.
// Warpgroups, stores and determinism as in conv2d_wgmma.cuh; the fused kernel stores as conv2d_epilogue.cuh
// says, with kPool as conv2d_pool_epilogue.cuh does, with kCounts the plain one sums columns as
// conv2d_column_sums.cuh does.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/conv2d/conv2d_column_sums.cuh"
#include "kernels/conv2d/conv2d_pool_epilogue.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"
#include "kernels/conv2d/conv2d_wgmma_store.cuh"

namespace kiln {

template <int kBM_, int kBN_, int kAStages_, int kBStages_, int kHaloPixels_, int kBK_ = 64,
          bool kPool_ = false>
struct HaloConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kCluster = 1;
  static constexpr bool kPool = kPool_;
  static constexpr int kAStages = kAStages_, kBStages = kBStages_;
  static constexpr int kHaloPixels = kHaloPixels_;  // most pixels of a halo
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kMTiles = kBM / (kConsumers * 64);
  static constexpr int kColumnSpan = kBN < 64 ? kBN : 64;
  static constexpr int kAStageBytes = kHaloPixels * kBK * 2, kBStageBytes = kBN * kBK * 2;
  static constexpr int kStoreBytes = kConsumerWarps * 16 * kColumnSpan * 2;
  static constexpr int kBarrierBytes = 2 * (kAStages + kBStages) * 8;
  static constexpr int kAlignment = 1024;
  static constexpr int kSmemBytes =
      kAStages * kAStageBytes + kBStages * kBStageBytes + kStoreBytes + kBarrierBytes + kAlignment;
  static constexpr bool kStats = kBN <= 64 && !kPool;  // wider tiles leave no registers for sums
  static constexpr bool kCounts = false;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kBM % (kConsumers * 64) == 0 && kMTiles * kBN <= 256, "whole m64 products, in registers");
  static_assert(kBN % kColumnSpan == 0 && kColumnSpan % 32 == 0, "staged in whole spans");
  static_assert(kAStageBytes % 1024 == 0 && kBStageBytes % 1024 == 0, "tiles start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

struct HaloShape {
  WgmmaShape g;     // origin_h, origin_w: source position of output pixel (0, 0) under displacement (0, 0)
  int tile_h;       // map rows of one image in a tile
  int tile_images;  // images of a tile
  int halo_bytes;   // tile_images * (tile_h + R - 1) * W * 2 * kBK
  bool resident;    // the filter stays in its ring
  Conv2dEpilogue epilogue = {};  // of the fused kernel
  uint8_t* arg = nullptr;        // with kPool: [N,P/2,Q/2,K/4] or null
  ColumnPartials partials = {};  // with kCounts
};

template <class Config>
struct HaloSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kAStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const {
    return a(Config::kAStages) + stage * Config::kBStageBytes;
  }
  __device__ __forceinline__ uint32_t store() const { return b(Config::kBStages); }
  __device__ __forceinline__ uint32_t a_full(int stage) const {
    return store() + Config::kStoreBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t a_empty(int stage) const { return a_full(Config::kAStages + stage); }
  __device__ __forceinline__ uint32_t b_full(int stage) const { return a_empty(Config::kAStages + stage); }
  __device__ __forceinline__ uint32_t b_empty(int stage) const { return b_full(Config::kBStages + stage); }
};

// The producer thread: fills both rings in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void halo_produce(const CUtensorMap* src, const CUtensorMap* filter,
                                             HaloSmem<Config> smem, const HaloShape& shape) {
  const WgmmaShape& g = shape.g;
  const int taps = g.r * g.s;
  tma_prefetch_map(src);
  tma_prefetch_map(filter);
  RingPosition<Config::kAStages> a;
  RingPosition<Config::kBStages> b;
  bool load_filter = true;
  for (TileWalk<Config> tile(g); !tile.done(); tile.next()) {
    const int image = tile.first_row() / (g.out_h * g.out_w);
    const int h = tile.first_row() % (g.out_h * g.out_w) / g.out_w + g.origin_h;
    for (int c0 = 0; c0 < g.src_c; c0 += Config::kBK) {
      for (int s = 0; s < g.s; ++s) {
        mbarrier_wait(smem.a_empty(a.stage), a.parity ^ 1);
        mbarrier_arrive_expect(smem.a_full(a.stage), shape.halo_bytes);
        tma_load_4d(smem.a(a.stage), src, smem.a_full(a.stage), c0, g.origin_w + s, h, image);
        a.advance();
        for (int r = 0; r < g.r && load_filter; ++r) {
          const int tap = r * g.s + s;
          mbarrier_wait(smem.b_empty(b.stage), b.parity ^ 1);
          mbarrier_arrive_expect(smem.b_full(b.stage), Config::kBStageBytes);
          // dgrad gathers dy with the filter turned by 180 degrees.
          load_filter_tile<Config, kDgrad>(filter, smem.b(b.stage), smem.b_full(b.stage), tile.first_column(),
                                           kDgrad ? taps - 1 - tap : tap, c0);
          b.advance();
        }
      }
    }
    load_filter = !shape.resident;
  }
}

// Starts the products of one filter tile with the halo rows that belong to it.
template <class Config, bool kDgrad>
__device__ __forceinline__ void halo_multiply(float (&acc)[Config::kMTiles][Config::kBN / 2],
                                              const uint32_t (&a_tiles)[Config::kMTiles], uint32_t b_tile,
                                              int add) {
  const uint64_t b = kDgrad ? mn_major_descriptor<64>(b_tile, Config::kBK * 64 * 2)
                            : k_major_descriptor<Config::kBK>(b_tile);
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      Wgmma<Config::kBN, 0, kDgrad>::multiply(
          acc[i], advance_descriptor(k_major_descriptor<Config::kBK>(a_tiles[i]), k16 * 32),
          advance_descriptor(b, k16 * (kDgrad ? 16 * 64 * 2 : 32)), k16 > 0 ? 1 : add);
    }
  }
}

// A consumer warpgroup: multiplies the stages of each tile and stores its rows.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void halo_consume(HaloSmem<Config> smem, unsigned char* store, const float* bias,
                                             bf16* out, const HaloShape& shape) {
  const WgmmaShape& g = shape.g;
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group_row = warp / 4 * Config::kMTiles * 64, pixel_bytes = Config::kBK * 2,
            row_bytes = g.out_w * pixel_bytes;
  uint32_t first_byte[Config::kMTiles];  // of each m64 product's rows in a halo, under filter row 0
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
    const int pixel = group_row + i * 64, image_pixels = shape.tile_h * g.out_w;
    first_byte[i] =
        pixel / image_pixels * (shape.tile_h + g.r - 1) * row_bytes + pixel % image_pixels * pixel_bytes;
  }
  const int groups = g.steps / g.r;  // halos of a tile
  float acc[Config::kMTiles][Config::kBN / 2] = {};
  RingPosition<Config::kAStages> a;
  RingPosition<Config::kBStages> b;
  unsigned char* staging = store + warp * 16 * Config::kColumnSpan * 2;
  constexpr bool kResidual = kFused && !Config::kPool;
  const bf16* joined = joined_tensor<kDgrad, kResidual>(g, shape.epilogue, out);
  TileSums<Config> sums;
  for (TileWalk<Config> tile(g); !tile.done(); tile.next()) {
    const int row = tile.first_row() + group_row, column = tile.first_column();
    const auto slices = [&](const auto& visit) {
      for_row_slices<Config>(warp, row, column, g.rows, g.columns, visit);
    };
    if (shape.resident) b = {};  // parity 0: the one fill of each stage
    JoinedTile<Config, kFused ? 1 : 2> held;
    int last_a = 0, last_b = 0;
    for (int group = 0; group < groups; ++group) {
      mbarrier_wait(smem.a_full(a.stage), a.parity);
      for (int r = 0; r < g.r; ++r) {
        mbarrier_wait(smem.b_full(b.stage), b.parity);
        uint32_t a_tiles[Config::kMTiles];
#pragma unroll
        for (int i = 0; i < Config::kMTiles; ++i) {
          a_tiles[i] = smem.a(a.stage) + first_byte[i] + r * row_bytes;
          pin_registers(acc[i]);
        }
        wgmma_fence();
        halo_multiply<Config, kDgrad>(acc, a_tiles, smem.b(b.stage), group + r > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the products of the filter tile before are done: what they read may be filled
                          // again
        if (lane == 0 && group + r > 0) {
          if (!shape.resident) mbarrier_arrive(smem.b_empty(last_b));
          if (r == 0) mbarrier_arrive(smem.a_empty(last_a));
        }
        last_b = b.stage;
        b.advance();
      }
      last_a = a.stage;
      a.advance();
    }
    if (joined) held.begin(joined, slices);  // they come under the last products
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    if (lane == 0) {
      if (!shape.resident) mbarrier_arrive(smem.b_empty(last_b));
      mbarrier_arrive(smem.a_empty(last_a));
    }
    if constexpr (Config::kPool) {
      store_pooled_tile<Config>(acc, store, warp, row, column, g.rows, g.columns, g.out_w, out, shape.arg,
                                shape.epilogue);
    } else if constexpr (Config::kCounts) {
      store_slices(acc, staging, held, nullptr, out, slices, SumFinish{},
                   [&](int at, uint32_t pair) { sums.add(at / 2, pair); });
    } else {
      store_product<kDgrad, kFused>(acc, staging, held, joined, out, bias, column, shape.epilogue, g, slices);
    }
  }
  if constexpr (Config::kCounts) {
    sums.template write<Config::kConsumerWarps>(smem.base, shape.partials, blockIdx.x % g.column_tiles,
                                                blockIdx.x / g.column_tiles);
  }
}

template <class Config, bool kDgrad, bool kFused>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_halo_wgmma_kernel(
    const __grid_constant__ CUtensorMap src,     // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]
    const __grid_constant__ CUtensorMap filter,  // w [K,RS,C]
    const float* __restrict__ bias,              // [K] or null (fwd)
    bf16* __restrict__ out,                      // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
    const __grid_constant__ HaloShape shape) {
  if constexpr (Config::kCounts) let_next_start();
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const HaloSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kAStages; ++i) {
      mbarrier_init(smem.a_full(i), 1);
      mbarrier_init(smem.a_empty(i), Config::kConsumerWarps);
    }
    for (int i = 0; i < Config::kBStages; ++i) {
      mbarrier_init(smem.b_full(i), 1);
      mbarrier_init(smem.b_empty(i), Config::kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  if (threadIdx.x / 128 == Config::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) halo_produce<Config, kDgrad>(&src, &filter, smem, shape);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    halo_consume<Config, kDgrad, kFused>(smem, raw + (smem.store() - start), bias, out, shape);
  }
}

}  // namespace kiln
