// The product of a 1x1 convolution with stride 1 and a long reduction on Hopper (sm_90a), where copies out of
// L2 are the limit:
//
//   out[m, j] = sum_i src[m, i] * filter(i, j)
//
// Rows m are pixels, columns j output channels, i source channels. Blocks, one a multiprocessor, walk over
// tiles of kBM x kBN outputs, a row tile's column tiles next to each other in time. All of shared memory but
// the barriers is one ring of slices of 64 channels of both operands, 160 to 224 KiB, which a producer thread
// fills by TMA (zeros beyond the last) across the ends of tiles. One or two consumer warpgroups multiply 64
// rows each with wgmma, or 128 as two products with the same filter. Results need no place in shared memory:
// the four lanes of a row exchange words until each has 16 bytes to store. Deterministic: one thread sums an
// output, in a fixed order.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/quad.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/common/wgmma.cuh"

namespace kiln {

template <int kGroups_, int kHalves_, int kBN_, int kStages_>
struct DeepConfig {
  static constexpr int kGroups = kGroups_;  // consumer warpgroups
  static constexpr int kHalves = kHalves_;  // products of 64 rows of each
  static constexpr int kBM = 64 * kGroups * kHalves, kBN = kBN_, kBK = 64, kStages = kStages_;
  // With two halves a warpgroup's accumulators need registers that the producer's warpgroup gives away.
  static constexpr bool kShiftsRegisters = kHalves == 2;
  static constexpr int kThreads = kGroups * 128 + (kShiftsRegisters ? 128 : 32);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kSpan = kBN % 64 == 0 ? 64 : 32;  // columns of a box of a dgrad filter
  static constexpr int kABytes = kBM * kBK * 2, kBBytes = kBN * kBK * 2, kStageBytes = kABytes + kBBytes;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kSmemBytes = kAlignment + kStages * kStageBytes + 2 * kStages * 8;
  static_assert(kGroups == 1 || kGroups == 2, "registers are shared out for one or two warpgroups");
  static_assert(kBN % 32 == 0, "whole boxes, and four lanes exchange four chunks of 8 columns");
  static_assert(kBBytes % kAlignment == 0, "tiles start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "the most that a block may take on compute capability 9.0");
};

struct DeepShape {
  int rows;     // pixels
  int columns;  // output channels
  int slices;   // of 64 source channels
  int column_tiles;
  int tiles;
};

// Shared memory of a block by 32-bit shared addresses.
template <class Config>
struct DeepSmem {
  uint32_t base;
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t full(int stage) const { return a(Config::kStages) + stage * 8; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
};

// The producer thread: fills stages in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void deep_produce(const CUtensorMap* src, const CUtensorMap* filter,
                                             const DeepSmem<Config>& smem, const DeepShape& g) {
  RingPosition<Config::kStages> at;
  for (int tile = blockIdx.x; tile < g.tiles; tile += gridDim.x) {
    const int first_row = tile / g.column_tiles * Config::kBM;
    const int first_column = tile % g.column_tiles * Config::kBN;
    for (int slice = 0; slice < g.slices; ++slice) {
      const uint32_t full = smem.full(at.stage), b = smem.b(at.stage);
      const int first_channel = slice * Config::kBK;
      mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
      mbarrier_arrive_expect(full, Config::kStageBytes);
      tma_load_3d(smem.a(at.stage), src, full, first_channel, first_row, 0);
      if constexpr (kDgrad) {  // boxes of 64 rows (dy's channels) x kSpan columns
        constexpr int kBoxBytes = Config::kBK * Config::kSpan * 2;
#pragma unroll
        for (int box = 0; box < Config::kBN / Config::kSpan; ++box) {
          tma_load_3d(b + box * kBoxBytes, filter, full, first_column + box * Config::kSpan, first_channel,
                      0);
        }
      } else {  // rows are columns of the product, 64 channels each
        tma_load_3d(b, filter, full, first_channel, first_column, 0);
      }
      at.advance();
    }
  }
}

// Starts the products of one slice for a warpgroup's rows. `add`: 0 where this is the tile's first slice.
template <class Config, bool kDgrad>
__device__ __forceinline__ void deep_multiply(float (&acc)[Config::kHalves][Config::kBN / 2], uint32_t a_rows,
                                              uint32_t b_tile, int add) {
  const uint64_t b = kDgrad ? mn_major_descriptor<Config::kSpan>(b_tile, Config::kBK * Config::kSpan * 2)
                            : k_major_descriptor<Config::kBK>(b_tile);
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
      const uint64_t a = k_major_descriptor<Config::kBK>(a_rows + half * 64 * Config::kBK * 2);
      Wgmma<Config::kBN, 0, kDgrad>::multiply(
          acc[half], advance_descriptor(a, k16 * 32),
          advance_descriptor(b, k16 * (kDgrad ? 16 * Config::kSpan * 2 : 32)), k16 > 0 ? 1 : add);
    }
  }
  wgmma_commit();
}

// Rounds and stores a lane's parts of rows `row` and `row` + 8 of 64, eight columns at a time.
template <int kBN>
__device__ __forceinline__ void deep_store(const float (&acc)[kBN / 2], bf16* out, int row, int first_column,
                                           const DeepShape& g) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int span = 0; span < kBN / 32; ++span) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* v = &acc[(span * 4 + j) * 4 + 2 * half];
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[0], v[1]);
        words[j] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      transpose_quad(words);
      const int own = row + 8 * half, column = first_column + span * 32 + lane * 8;
      if (own < g.rows && column < g.columns) {
        *reinterpret_cast<uint4*>(out + static_cast<size_t>(own) * g.columns + column) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

// A consumer warpgroup: its rows of each tile. A stage is given back once the next one's products have
// started, which keeps the tensor cores busy.
template <class Config, bool kDgrad>
__device__ __forceinline__ void deep_consume(bf16* out, const DeepSmem<Config>& smem, const DeepShape& g) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group = warp / 4, lane = threadIdx.x % 32;
  constexpr int kRows = 64 * Config::kHalves;  // of a warpgroup
  const auto release = [&](int stage) {
    if (lane == 0) mbarrier_arrive(smem.empty(stage));
  };
  float acc[Config::kHalves][Config::kBN / 2] = {};
  RingPosition<Config::kStages> at;
  for (int tile = blockIdx.x; tile < g.tiles; tile += gridDim.x) {
    int last = 0;
    for (int slice = 0; slice < g.slices; ++slice) {
      mbarrier_wait(smem.full(at.stage), at.parity);
#pragma unroll
      for (int half = 0; half < Config::kHalves; ++half) pin_registers(acc[half]);
      wgmma_fence();
      deep_multiply<Config, kDgrad>(acc, smem.a(at.stage) + group * kRows * Config::kBK * 2, smem.b(at.stage),
                                    slice > 0);
      wgmma_wait<1>();
      if (slice > 0) release(last);
      last = at.stage;
      at.advance();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) pin_registers(acc[half]);
    release(last);
    const int first_row = tile / g.column_tiles * Config::kBM + group * kRows + warp % 4 * 16 + lane / 4;
    const int first_column = tile % g.column_tiles * Config::kBN;
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
      deep_store<Config::kBN>(acc[half], out, first_row + half * 64, first_column, g);
    }
  }
}

template <class Config, bool kDgrad>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_deep_wgmma_kernel(
    const __grid_constant__ CUtensorMap src,     // [rows, channels]
    const __grid_constant__ CUtensorMap filter,  // w [K,C]
    bf16* out,                                   // [rows, columns]
    const __grid_constant__ DeepShape g) {
  let_next_start();
  extern __shared__ unsigned char raw[];
  const DeepSmem<Config> smem{(smem_address(raw) + Config::kAlignment - 1) / Config::kAlignment *
                              Config::kAlignment};
  constexpr int kProducer = Config::kGroups * 128;
  if (threadIdx.x == kProducer) {
    tma_prefetch_map(&src);
    tma_prefetch_map(&filter);
  } else if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kGroups * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  wait_for_last();  // nothing but this kernel's parameters has been read
  if (threadIdx.x >= kProducer) {
    if constexpr (Config::kShiftsRegisters) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    }
    if (threadIdx.x == kProducer) deep_produce<Config, kDgrad>(&src, &filter, smem, g);
  } else {
    if constexpr (Config::kShiftsRegisters) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    }
    deep_consume<Config, kDgrad>(out, smem, g);
  }
}

}  // namespace kiln
