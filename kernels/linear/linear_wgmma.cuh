// The product behind the three passes of linear on Hopper's tensor cores (sm_90a):
//
//   out[i,j] = bias[j] + sum_l A(i,l) * B(j,l),   row_sums[i] = sum_l A(i,l)
//
// An operand lies in memory along the sum ([rows, l], K-major) or across it ([l, rows], MN-major); wgmma
// reads both. A work item is a kBM x kBN tile of out over one part of the sum; blocks are persistent, one a
// multiprocessor. One producer thread fills a ring of kStages stages of 64 l with TMA (zeros beyond the
// edges); two consumer warpgroups multiply, kMTiles x 64 rows each, and a full and an empty mbarrier a stage
// join them, so that copies of the next item go on under the epilogue. bf16 leaves through a warp's own
// staging rows, fp32 straight from the accumulators; parts of a cut sum go to the workspace, for
// linear_sum_splits. Row sums (dbias) are one more product, by a tile of ones. 195 to 209 KiB of shared
// memory. Deterministic: one thread sums an element of a part, in a fixed order.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/linear/linear_wgmma_store.cuh"

namespace kiln {

template <int kBM_, int kBN_, int kStages_, bool kAAcross_, bool kBAcross_>
struct LinearWgmmaConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = 64, kStages = kStages_;
  static constexpr bool kAAcross = kAAcross_, kBAcross = kBAcross_;  // stored [l, rows]
  static constexpr bool kWgrad = kAAcross;                           // fp32 sums and row sums
  static constexpr int kGroups = 2;                                  // consumer warpgroups
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kMTiles = kBM / (kGroups * 64);  // m64 products of a warpgroup
  static constexpr int kBoxBytes = kBK * 64 * 2;        // 64 rows of an operand, either way
  static constexpr int kABytes = kBM / 64 * kBoxBytes, kBBytes = kBN / 64 * kBoxBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStagingBytes = 16 * 64 * 2;  // a warp's
  static constexpr int kExtraBytes =
      kWgrad ? 2048 : kGroups * 4 * kStagingBytes;  // a tile of ones, or staging
  static constexpr int kAlignment = 1024;           // period of the 128-byte swizzle
  static constexpr int kSmemBytes = kStages * kStageBytes + kExtraBytes + 2 * kStages * 8 + kAlignment;
  // Registers a thread after setmaxnreg: 128 * 40 + 256 * 232 = 64,512 of 65,536.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kBM % (kGroups * 64) == 0 && kBM <= 256, "a warpgroup owns whole m64 products");
  static_assert(kBN % 64 == 0 && kMTiles * kBN <= 256, "whole boxes; accumulators fit in registers");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

struct LinearWgmmaShape {
  int rows, columns;  // of out
  int steps;          // of 64 l, the whole sum
  int row_tiles, column_tiles;
  int splits;                // parts of the sum
  bool f32_out;              // out is fp32
  long long partial_stride;  // floats from one part's sums to the next: [rows,columns], then [rows]
};

// Shared memory of a block by 32-bit shared addresses.
template <class Config>
struct LinearWgmmaSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t extra() const { return base + Config::kStages * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return extra() + Config::kExtraBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
};

// The items of a block. Tiles go down the rows of a band of kBand row tiles and then to the next column, so
// that the blocks at work at one time share few rows and few columns: those come from L2.
template <class Config>
struct LinearWalk {
  static constexpr int kBand = 16;
  const LinearWgmmaShape& g;
  int item;
  int part, first_row, first_column, first_step, steps;
  __device__ __forceinline__ explicit LinearWalk(const LinearWgmmaShape& shape) : g(shape), item(blockIdx.x) {
    place();
  }
  __device__ __forceinline__ bool done() const { return part >= g.splits; }
  __device__ __forceinline__ void next() {
    item += gridDim.x;
    place();
  }

 private:
  __device__ __forceinline__ void place() {
    const int tiles = g.row_tiles * g.column_tiles, tile = item % tiles;
    part = item / tiles;
    const int band = tile / (kBand * g.column_tiles) * kBand, height = min(kBand, g.row_tiles - band);
    const int in_band = tile - band * g.column_tiles;
    first_row = (band + in_band % height) * Config::kBM;
    first_column = in_band / height * Config::kBN;
    first_step = static_cast<int>(1LL * g.steps * part / g.splits);
    steps = static_cast<int>(1LL * g.steps * (part + 1) / g.splits) - first_step;
  }
};

// Starts the copies of one operand's tile: kRows rows from `row`, 64 l from `l`.
template <bool kAcross, int kRows>
__device__ __forceinline__ void load_operand(uint32_t tile, const CUtensorMap* map, uint32_t barrier, int row,
                                             int l) {
  if constexpr (kAcross) {  // boxes of 64 l x 64 rows
#pragma unroll
    for (int box = 0; box < kRows / 64; ++box) {
      tma_load_3d(tile + box * 64 * 64 * 2, map, barrier, row + box * 64, l, 0);
    }
  } else {  // one box of kRows rows x 64 l
    tma_load_3d(tile, map, barrier, l, row, 0);
  }
}

// The producer thread: fills stages in the order in which the consumers use them.
template <class Config>
__device__ __forceinline__ void linear_produce(const CUtensorMap* a, const CUtensorMap* b,
                                               const LinearWgmmaSmem<Config>& smem,
                                               const LinearWgmmaShape& g) {
  tma_prefetch_map(a);
  tma_prefetch_map(b);
  RingPosition<Config::kStages> at;
  for (LinearWalk<Config> walk(g); !walk.done(); walk.next()) {
    for (int step = 0; step < walk.steps; ++step, at.advance()) {
      const int l = (walk.first_step + step) * Config::kBK;
      mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
      mbarrier_arrive_expect(smem.full(at.stage), Config::kStageBytes);
      load_operand<Config::kAAcross, Config::kBM>(smem.a(at.stage), a, smem.full(at.stage), walk.first_row,
                                                  l);
      load_operand<Config::kBAcross, Config::kBN>(smem.b(at.stage), b, smem.full(at.stage), walk.first_column,
                                                  l);
    }
  }
}

template <class Config>
struct LinearSums {
  float v[Config::kMTiles][Config::kBN / 2];
  float rows[Config::kMTiles][16];  // products by ones: every column holds the row sums

  template <bool kRowSums>
  __device__ __forceinline__ void pin() {
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      pin_registers(v[i]);
      if constexpr (kRowSums) pin_registers(rows[i]);
    }
  }
};

// Starts the products of one stage for a warpgroup's rows. `add`: 0 where this is the item's first stage.
template <class Config, bool kRowSums>
__device__ __forceinline__ void multiply_stage(LinearSums<Config>& sums, uint32_t a_tile, uint32_t b_tile,
                                               uint32_t ones, int add) {
  const uint64_t a =
      Config::kAAcross ? mn_major_descriptor<64>(a_tile, Config::kBoxBytes) : k_major_descriptor<64>(a_tile);
  const uint64_t b =
      Config::kBAcross ? mn_major_descriptor<64>(b_tile, Config::kBoxBytes) : k_major_descriptor<64>(b_tile);
  constexpr int kAStep = Config::kAAcross ? 16 * 64 * 2 : 32, kBStep = Config::kBAcross ? 16 * 64 * 2 : 32;
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      const uint64_t a16 = advance_descriptor(a, i * Config::kBoxBytes + k16 * kAStep);
      Wgmma<Config::kBN, Config::kAAcross, Config::kBAcross>::multiply(
          sums.v[i], a16, advance_descriptor(b, k16 * kBStep), k16 > 0 ? 1 : add);
      if constexpr (kRowSums) {
        Wgmma<32, Config::kAAcross, 0>::multiply(sums.rows[i], a16, k_major_descriptor<32>(ones),
                                                 k16 > 0 ? 1 : add);
      }
    }
  }
}

// A consumer warpgroup's share of an item's stages, from group_row of the tile.
template <class Config, bool kRowSums>
__device__ __forceinline__ void multiply_item(LinearSums<Config>& sums, const LinearWgmmaSmem<Config>& smem,
                                              RingPosition<Config::kStages>& at, int group_row, int steps) {
  const int lane = threadIdx.x % 32;
  int previous = 0;
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(smem.full(at.stage), at.parity);
    sums.template pin<kRowSums>();
    wgmma_fence();
    multiply_stage<Config, kRowSums>(sums, smem.a(at.stage) + group_row / 64 * Config::kBoxBytes,
                                     smem.b(at.stage), smem.extra(), step > 0);
    wgmma_commit();
    wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
    if (step > 0 && lane == 0) mbarrier_arrive(smem.empty(previous));
    previous = at.stage;
    at.advance();
  }
  wgmma_wait<0>();
  sums.template pin<kRowSums>();
  if (lane == 0) mbarrier_arrive(smem.empty(previous));
}

// Where an item's results go.
struct LinearOut {
  void* out;          // [rows,columns] bf16, or fp32 with f32_out
  float* row_sums;    // [rows] or null
  float* partial;     // [splits,partial_stride], used where there is more than one part
  const float* bias;  // [columns] or null
};

// A consumer warpgroup: multiplies the stages of each item and stores its rows.
template <class Config>
__device__ __forceinline__ void linear_consume(const LinearWgmmaSmem<Config>& smem, unsigned char* extra,
                                               const LinearOut& to, const LinearWgmmaShape& g) {
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group_row = warp / 4 * Config::kMTiles * 64;           // first row of the warpgroup in the tile
  LinearSums<Config> sums = {};
  RingPosition<Config::kStages> at;
  for (LinearWalk<Config> walk(g); !walk.done(); walk.next()) {
    const bool row_sums = Config::kWgrad && to.row_sums != nullptr && walk.first_column == 0;
    if (row_sums) {
      multiply_item<Config, Config::kWgrad>(sums, smem, at, group_row, walk.steps);
    } else {
      multiply_item<Config, false>(sums, smem, at, group_row, walk.steps);
    }
    float* partial = g.splits > 1 ? to.partial + walk.part * g.partial_stride : nullptr;
    float* totals = partial ? partial + static_cast<size_t>(g.rows) * g.columns : to.row_sums;
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      const int first_row = walk.first_row + group_row + i * 64 + warp % 4 * 16;
      if (partial) {
        store_f32<Config::kBN>(sums.v[i], first_row, walk.first_column, g.rows, g.columns, nullptr, partial);
      } else if (Config::kWgrad || g.f32_out) {
        store_f32<Config::kBN>(sums.v[i], first_row, walk.first_column, g.rows, g.columns, to.bias,
                               static_cast<float*>(to.out));
      } else if constexpr (!Config::kWgrad) {
        store_bf16<Config::kBN>(sums.v[i], extra + warp * Config::kStagingBytes, first_row, walk.first_column,
                                g.rows, g.columns, to.bias, static_cast<bf16*>(to.out));
      }
      if (row_sums && lane % 4 == 0) {
        const int row = first_row + lane / 4;
        if (row < g.rows) totals[row] = sums.rows[i][0];
        if (row + 8 < g.rows) totals[row + 8] = sums.rows[i][2];
      }
    }
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void linear_wgmma_kernel(
    const __grid_constant__ CUtensorMap a,  // fwd: x [N,C]; dgrad: dy [N,K]; wgrad: dy [N,K], across
    const __grid_constant__ CUtensorMap b,  // fwd: w [K,C]; dgrad: w [K,C], across; wgrad: x [N,C], across
    const float* __restrict__ bias,         // fwd: [K] or null
    void* __restrict__ out,                 // fwd: y [N,K]; dgrad: dx [N,C]; wgrad: dw [K,C]
    float* __restrict__ row_sums,           // wgrad: dbias [K] or null
    float* __restrict__ partial,            // [splits,partial_stride], used where there is more than one part
    const __grid_constant__ LinearWgmmaShape g) {
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const LinearWgmmaSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment *
                                        Config::kAlignment};
  unsigned char* extra = raw + (smem.extra() - start);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kGroups * 4);
    }
    fence_barrier_init();
  }
  if constexpr (Config::kWgrad) {  // 32 columns of 32 l, of which a product reads 16
    constexpr uint32_t kOnes = 0x3f803f80;
    for (int i = threadIdx.x; i < Config::kExtraBytes / 4; i += Config::kThreads) {
      reinterpret_cast<uint32_t*>(extra)[i] = kOnes;
    }
    tma_store_fence();  // wgmma reads through the proxy that TMA uses
  }
  __syncthreads();  // barriers are initialised, ones are written
  let_next_start();
  if (threadIdx.x / 128 == Config::kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) linear_produce<Config>(&a, &b, smem, g);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    linear_consume<Config>(smem, extra, {out, row_sums, partial, bias}, g);
  }
}

}  // namespace kiln
