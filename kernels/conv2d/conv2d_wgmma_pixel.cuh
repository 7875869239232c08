// The product of fwd and dgrad on Hopper (sm_90a), one output pixel of many images at a time:
//
//   out[n, pixel, j] (+)= bias[j] + sum_{r,s,i} src[n, pixel displaced by (r,s), i] * filter(j, r, s, i)
//
// A tile is kBM images x kBN output channels of one output pixel. All of its rows see the same padding, so
// the taps that fall on it are left out exactly, and each copy is a plain box of the source; of a strided
// dgrad they meet the same taps, those of the pixel's parity, and the others are left out too. Blocks stay
// and walk lists of tiles (PixelSchedule in conv2d_wgmma_pixel_tile.cuh). One producer thread fills a ring of
// kStages stages with TMA. Two consumer warpgroups either share a tile, half of its images each, or, with
// kPingPong, have tiles of their own in turns: the stages of a tile belong to one warpgroup, which starts
// when the other has started its last products and stores under them. Results go through staging tiles of
// kStoreColumns columns a warpgroup, which the copy engine stores; for += it first brings the old values
// there. With kCounts columns are summed as conv2d_column_sums.cuh does. Shared memory: kSmemBytes.
// Deterministic: one thread sums an output, in a fixed order.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/conv2d/conv2d_epilogue_staged.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"
#include "kernels/conv2d/conv2d_wgmma_pixel_tile.cuh"

namespace kiln {

// The producer thread: fills stages tile by tile, in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void pixel_produce(const CUtensorMap* src, const CUtensorMap* filter,
                                              PixelSmem<Config> smem, const PixelShape& g,
                                              const PixelSchedule& schedule) {
  tma_prefetch_map(src);
  tma_prefetch_map(filter);
  RingPosition<Config::kStages> at;
  for (PixelWalk walk(schedule); !walk.done(); ++walk.turn) {
    const PixelTile t = pixel_tile<Config>(g, walk.tile());
    for (int r = t.r0; r < t.r1; ++r) {
      for (int s = t.s0; s < t.s1; ++s) {
        // dgrad gathers dy with the filter turned by 180 degrees. Beyond the last tap the engine finds zeros.
        const int turned = (t.first_r - r * g.parity_h) * g.s + t.first_s - s * g.parity_w;
        const int tap = !kDgrad ? r * g.s + s : t.empty ? g.r * g.s : turned;
        for (int c0 = 0; c0 < g.src_c; c0 += Config::kBK) {
          mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
          mbarrier_arrive_expect(smem.full(at.stage), Config::kStageBytes);
          tma_load_4d(smem.a(at.stage), src, smem.full(at.stage), c0, t.w + s, t.h + r, t.image);
          load_filter_tile<Config, kDgrad>(filter, smem.b(at.stage), smem.full(at.stage), t.column, tap, c0);
          at.advance();
        }
      }
    }
  }
}

__device__ __forceinline__ void pixel_group_sync(int group) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(group + 1) : "memory");
}

// Boxes of a warpgroup's staging tile and the columns at which they begin, from `first` on.
template <class Config, class Copy>
__device__ __forceinline__ void for_pixel_boxes(uint32_t staging, int first, const Copy& copy) {
#pragma unroll
  for (int box = 0; box < Config::kStoreColumns / Config::kColumnSpan; ++box) {
    copy(staging + box * Config::kBoxBytes, first + box * Config::kColumnSpan);
  }
}

// The old values of a warpgroup's rows, into its staging tile. One thread, when no store reads that tile.
template <class Config>
__device__ __forceinline__ void load_old_pixels(const CUtensorMap* out, uint32_t staging, uint32_t barrier,
                                                const PixelTile& t, int image, int first) {
  mbarrier_arrive_expect(barrier, Config::kStagingBytes);
  for_pixel_boxes<Config>(staging, first, [&](uint32_t to, int column) {
    tma_load_4d(to, out, barrier, column, t.q, t.p, image);
  });
}

// Rounds 16 rows x kStoreColumns columns of a warp, from `row` of the staging tile, whose boxes have the
// 128-byte swizzle; stmatrix takes accumulators as they lie. `acc`: those of column `first` on. With `adds`
// the tile holds what is added to them.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void stage_pixels(const float* acc, uint32_t staging, int row, int first,
                                             const float* __restrict__ bias,
                                             const StagedEpilogue<kFused>& fused, bool adds,
                                             const PixelShape& g) {
  const int lane = threadIdx.x % 32;
  const auto place = [&](int at_row, int chunk) {
    return staging + chunk / 8 * Config::kBoxBytes + at_row * 128 + ((chunk ^ at_row) & 7) * 16;
  };
  // Two chunks of 8 columns at once: pairs[0], [1] are rows 0-7 and 8-15 of chunk j, [2], [3] of the next.
#pragma unroll
  for (int j = 0; j < Config::kStoreColumns / 8; j += 2) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = j + i / 2, column = first + chunk * 8 + 2 * (lane % 4);
      float2 add = make_float2(0.0f, 0.0f);
      if ((kDgrad || kFused) && adds) {
        uint32_t old;
        asm volatile("ld.shared.b32 %0, [%1];\n"
                     : "=r"(old)
                     : "r"(place(row + i % 2 * 8 + lane / 4, chunk) + lane % 4 * 4)
                     : "memory");
        add = make_float2(__uint_as_float(old << 16), __uint_as_float(old & 0xffff0000u));
      }
      if (!kDgrad && !kFused && bias != nullptr && column < g.columns) {
        add = *reinterpret_cast<const float2*>(bias + column);
      }
      const float* v = &acc[4 * chunk + i % 2 * 2];
      const float2 sum = fused.template finish<kDgrad>(v[0], v[1], add, column, g.columns);
      const __nv_bfloat162 pair = __floats2bfloat162_rn(sum.x, sum.y);
      pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    if ((kDgrad || kFused) && adds) __syncwarp();  // old values are read before their place is written
    stmatrix_x4(place(row + lane % 16, j + lane / 16), pairs);
  }
}

// Where a warpgroup's addends come from: out for +=, the fused residual, x of a gate, or null.
template <bool kDgrad, bool kFused>
__device__ __forceinline__ const CUtensorMap* pixel_addends(const CUtensorMap* out,
                                                            const StagedEpilogue<kFused>& fused,
                                                            const PixelShape& g) {
  if constexpr (kFused) {
    return fused.of.residual ? &fused.residual : nullptr;
  } else {
    if (kDgrad && fused.gated) return &fused.x;
    return kDgrad && g.accumulate ? out : nullptr;
  }
}

// The same of a warp's rows in all m64 products, from column `column` of the tile on, where there is nothing
// but the sums; count(pair, rounded) sees what is stored. A row of a box is one period of the swizzle, so
// that the places of a lane differ in bits that are turned over and in constants.
template <class Config, class Count>
__device__ __forceinline__ void stage_pixel_sums(const float (&acc)[Config::kMTiles][Config::kBN / 2],
                                                 uint32_t staging, int column, const Count& count) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
  const uint32_t place = staging + row * 128 + ((lane / 16 ^ row) & 7) * 16;
#pragma unroll
  for (int j = 0; j < Config::kStoreColumns / 8; j += 2) {
    const uint32_t to = (place ^ j % 8 * 16) + j / 8 * Config::kBoxBytes;
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      uint32_t pairs[4];  // as in stage_pixels()
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float* v = &acc[i][column / 2 + 4 * (j + e / 2) + e % 2 * 2];
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[0], v[1]);
        pairs[e] = *reinterpret_cast<const uint32_t*>(&pair);
        count(column / 8 + j + e / 2, pairs[e]);
      }
      stmatrix_x4(to + i * 64 * 128, pairs);
    }
  }
}

// Stores a warpgroup's rows of tile t, from image `image` on. Where there are addends (`old`) the leader has
// asked for the first, whose phase has `old_parity`.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void store_pixels(const float (&acc)[Config::kMTiles][Config::kBN / 2],
                                             const CUtensorMap* out, PixelSmem<Config> smem, int group,
                                             const PixelTile& t, int image, const float* __restrict__ bias,
                                             const StagedEpilogue<kFused>& fused, const CUtensorMap* old,
                                             const PixelShape& g, uint32_t& old_parity,
                                             TileSums<Config>& sums) {
  const bool leader = threadIdx.x % 128 == 0, adds = old != nullptr;
  const uint32_t staging = smem.staging(group);
  const int row = threadIdx.x / 32 % 4 * 16;
#pragma unroll
  for (int column = 0; column < Config::kBN; column += Config::kStoreColumns) {
    const int first = t.column + column;
    if (leader && (column > 0 || !adds)) {
      tma_store_wait_read<0>();
      if (adds) load_old_pixels<Config>(old, staging, smem.old(group), t, image, first);
    }
    if (adds) {
      mbarrier_wait(smem.old(group), old_parity);
      old_parity ^= 1;
    } else {
      pixel_group_sync(group);  // the leader has seen the last store read the staging tile
    }
    if constexpr (Config::kCounts) {
      stage_pixel_sums<Config>(acc, staging, column, [&](int at, uint32_t pair) { sums.add(at, pair); });
    } else if (!kFused && !adds &&
               bias == nullptr) {  // a short way through the code: it is fetched as it runs
      stage_pixel_sums<Config>(acc, staging, column, NotCounted{});
    } else {
#pragma unroll
      for (int i = 0; i < Config::kMTiles; ++i) {
        stage_pixels<Config, kDgrad, kFused>(acc[i] + column / 2, staging, row + i * 64, first, bias, fused,
                                             adds, g);
      }
    }
    tma_store_fence();
    pixel_group_sync(group);  // the staging tile is written
    if (leader) {
      for_pixel_boxes<Config>(staging, first,
                              [&](uint32_t from, int at) { tma_store_4d(out, from, at, t.q, t.p, image); });
      tma_store_commit();
    }
  }
}

// A consumer warpgroup: multiplies the stages of its tiles and stores its rows. With kPingPong the full
// barriers' parities are ambiguous until the other warpgroup has waited for all stages of its tile before
// this one: that is what the turn is for, besides the order.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void pixel_consume(const CUtensorMap* out, PixelSmem<Config> smem,
                                              const float* __restrict__ bias,
                                              const StagedEpilogue<kFused>& fused, const PixelShape& g,
                                              const PixelSchedule& schedule) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group = warp / 4, lane = threadIdx.x % 32;
  const bool leader = threadIdx.x % 128 == 0;
  const int group_row = Config::kPingPong ? 0 : group * Config::kGroupRows;  // first row in the tile
  const int slices = (g.src_c + Config::kBK - 1) / Config::kBK;
  const CUtensorMap* old = pixel_addends<kDgrad, kFused>(out, fused, g);
  if (leader) tma_prefetch_map(out);
  float acc[Config::kMTiles][Config::kBN / 2] = {};
  PixelRing<Config::kStages> at;
  TileSums<Config> sums;
  uint32_t old_parity = 0, turn_parity = group ^ 1;
  for (PixelWalk walk(schedule); !walk.done(); ++walk.turn) {
    const PixelTile t = pixel_tile<Config>(g, walk.tile());
    const int steps = t.taps() * slices;
    if (Config::kPingPong && walk.turn % Config::kGroups != group) {  // the other's tile
      at.skip(steps);
      continue;
    }
    if ((kDgrad || kFused) && old && leader) {
      tma_store_wait_read<0>();
      load_old_pixels<Config>(old, smem.staging(group), smem.old(group), t, t.image + group_row, t.column);
    }
    if constexpr (Config::kPingPong) {
      mbarrier_wait(smem.turn(group), turn_parity);
      turn_parity ^= 1;
    }
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(smem.full(at.stage), at.parity);
#pragma unroll
      for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
      wgmma_fence();
      multiply_stage<Config, kDgrad>(acc, smem.a(at.stage) + group_row * Config::kBK * 2, smem.b(at.stage),
                                     step > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
      if (step > 0 && lane == 0) mbarrier_arrive(smem.empty(previous));
      previous = at.stage;
      at.advance();
    }
    if (Config::kPingPong && lane == 0) mbarrier_arrive(smem.turn(group ^ 1));
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    if (lane == 0) mbarrier_arrive(smem.empty(previous));
    store_pixels<Config, kDgrad, kFused>(acc, out, smem, group, t, t.image + group_row, bias, fused, old, g,
                                         old_parity, sums);
  }
  if constexpr (Config::kCounts) {
    sums.template write<Config::kGroups * 4>(smem.a(0), fused.partials, blockIdx.x % g.column_tiles,
                                             blockIdx.x / g.column_tiles);
  }
  if (leader) tma_store_wait_read<0>();  // shared memory must outlive the stores that read it
}

template <class Config, bool kDgrad, bool kFused>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_pixel_wgmma_kernel(
    const __grid_constant__ CUtensorMap src,     // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]
    const __grid_constant__ CUtensorMap filter,  // w [K,RS,C]
    const __grid_constant__ CUtensorMap out,     // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
    const float* __restrict__ bias,              // [K] or null (fwd)
    const __grid_constant__ StagedEpilogue<kFused> fused, const __grid_constant__ PixelShape g,
    const __grid_constant__ PixelSchedule schedule) {
  if constexpr (Config::kCounts) let_next_start();
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const PixelSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kReaders);
    }
    for (int i = 0; i < Config::kGroups; ++i) {
      mbarrier_init(smem.turn(i), 4);  // the other warpgroup's warps
      mbarrier_init(smem.old(i), 1);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  if (threadIdx.x / 128 == Config::kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) pixel_produce<Config, kDgrad>(&src, &filter, smem, g, schedule);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    pixel_consume<Config, kDgrad, kFused>(&out, smem, bias, fused, g, schedule);
  }
}

}  // namespace kiln
