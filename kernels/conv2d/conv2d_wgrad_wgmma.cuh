// The product behind wgrad on Hopper's tensor cores (sm_90a):
//
//   partial[split][k, (r,s,c)] = sum over the split's output pixels m of dy[m, k] * x[pixel(m) displaced by
//   (r,s), c]
//
// Both operands have the summed index m as rows in memory, so both tiles are MN-major: boxes of kBK pixels x
// 64 output channels of dy, and of kBK gathered pixels x kSpan input channels of x for one tap (im2col mode).
// A column of boxes is a pair (tap, channel slice); the last slice of a tap may be part zeros, which is not
// stored. A block sums one kBM x kBN tile over one split: lane i of the producer warp starts the copy of box
// i of each stage, consumer warpgroups are laid out kGroupsM x kGroupsN over the tile, kMTiles x 64 by kN
// each. The engine's zeros beyond the last image stand for the last split's missing pixels. Deterministic.
#pragma once

#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

namespace kiln {

template <int kGroupsM_, int kGroupsN_, int kMTiles_, int kN_, int kSpan_, int kBK_, int kStages_>
struct WgradWgmmaConfig {
  static constexpr int kGroupsM = kGroupsM_, kGroupsN = kGroupsN_, kMTiles = kMTiles_, kN = kN_;
  static constexpr int kSpan = kSpan_, kBK = kBK_, kStages = kStages_;
  static constexpr int kGroups = kGroupsM * kGroupsN;  // consumer warpgroups
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kBM = kGroupsM * kMTiles * 64, kBN = kGroupsN * kN;
  static constexpr int kABoxes = kBM / 64, kBBoxes = kBN / kSpan;
  static constexpr int kABoxBytes = kBK * 64 * 2, kBBoxBytes = kBK * kSpan * 2;
  static constexpr int kABytes = kABoxes * kABoxBytes;
  static constexpr int kStageBytes = kABytes + kBBoxes * kBBoxBytes;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kSmemBytes = kStages * kStageBytes + 2 * kStages * 8 + kAlignment;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = kGroups == 2 ? 232 : 152;
  static_assert(kGroups == 2 || kGroups == 3, "registers are shared out for two or three consumers");
  static_assert(128 * kProducerRegisters + 128 * kGroups * kConsumerRegisters <= 65536, "register file");
  static_assert(kABoxes + kBBoxes <= 32, "a box a lane");
  static_assert(kN % kSpan == 0 && kBK % 16 == 0, "whole boxes, whole k16 steps");
  static_assert(kBBoxBytes % kAlignment == 0 && kABoxBytes % kAlignment == 0,
                "boxes start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

struct WgradWgmmaShape {
  int pixels, pixels_per_split;  // N*P*Q; a multiple of kBK
  int p, q;                      // output map
  int stride_h, stride_w, pad_h, pad_w;
  int k, c;          // channels
  int s;             // filter width
  int slices;        // boxes of kSpan channels that cover c
  int column_boxes;  // taps * slices
  int columns;       // R*S*C
};

template <class Config>
struct WgradWgmmaSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + Config::kStages * Config::kStageBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
};

// The producer warp. Every lane waits for the stage; lane 0 announces all of its bytes, which may come before
// or after bytes have arrived: the phase cannot end before lane 0's arrival.
template <class Config>
__device__ __forceinline__ void wgrad_produce(const CUtensorMap* dy, const CUtensorMap* x,
                                              WgradWgmmaSmem<Config> smem, int first_k, int first_box,
                                              int first_pixel, int steps, const WgradWgmmaShape& g) {
  const int lane = threadIdx.x % 32, b_box = lane - Config::kABoxes;
  const int box = min(first_box + max(b_box, 0), g.column_boxes - 1);  // boxes beyond the last: not stored
  const int tap = box / g.slices, c0 = box % g.slices * Config::kSpan;
  const int r = tap / g.s, s = tap % g.s;
  RingPosition<Config::kStages> at;
  for (int step = 0, pixel = first_pixel; step < steps; ++step, pixel += Config::kBK, at.advance()) {
    const int image = pixel / (g.p * g.q), position = pixel % (g.p * g.q);
    const int h = position / g.q * g.stride_h - g.pad_h, w = position % g.q * g.stride_w - g.pad_w;
    mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
    if (lane == 0) mbarrier_arrive_expect(smem.full(at.stage), Config::kStageBytes);
    __syncwarp();
    if (b_box < 0) {
      tma_load_3d(smem.a(at.stage) + lane * Config::kABoxBytes, dy, smem.full(at.stage), first_k + lane * 64,
                  pixel, 0);
    } else if (b_box < Config::kBBoxes) {
      tma_load_im2col(smem.b(at.stage) + b_box * Config::kBBoxBytes, x, smem.full(at.stage), c0, w, h, image,
                      s, r);
    }
  }
}

// Writes a warpgroup's accumulators: rows from `first_k`, boxes of columns from `first_box`.
template <class Config>
__device__ __forceinline__ void wgrad_store(const float (&acc)[Config::kMTiles][Config::kN / 2], int first_k,
                                            int first_box, float* __restrict__ out,
                                            const WgradWgmmaShape& g) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int b = 0; b < Config::kN / Config::kSpan; ++b) {
    const int box = first_box + b, tap = box / g.slices, c0 = box % g.slices * Config::kSpan;
    if (box >= g.column_boxes) return;
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = first_k + i * 64 + warp * 16 + half * 8 + lane / 4;
        float* row = out + static_cast<size_t>(k) * g.columns + tap * g.c + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < Config::kSpan / 8; ++j) {
          const float* v = &acc[i][(b * Config::kSpan / 8 + j) * 4 + 2 * half];
          if (k < g.k && c0 + j * 8 < g.c) {
            *reinterpret_cast<float2*>(row + c0 + j * 8) = make_float2(v[0], v[1]);
          }
        }
      }
    }
  }
}

// A consumer warpgroup: multiplies its part of every stage, then stores its sums.
template <class Config>
__device__ __forceinline__ void wgrad_consume(WgradWgmmaSmem<Config> smem, int first_k, int first_box,
                                              int steps, float* out, const WgradWgmmaShape& g) {
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  const int group_m = group / Config::kGroupsN, group_n = group % Config::kGroupsN;
  constexpr int kGroupBoxes = Config::kN / Config::kSpan;
  float acc[Config::kMTiles][Config::kN / 2] = {};
  RingPosition<Config::kStages> at;
  int previous = 0;
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(smem.full(at.stage), at.parity);
    const uint32_t a_tile = smem.a(at.stage) + group_m * Config::kMTiles * Config::kABoxBytes;
    const uint64_t a = mn_major_descriptor<64>(a_tile, Config::kABoxBytes);
    const uint64_t b = mn_major_descriptor<Config::kSpan>(
        smem.b(at.stage) + group_n * kGroupBoxes * Config::kBBoxBytes, Config::kBBoxBytes);
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    wgmma_fence();
#pragma unroll
    for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
#pragma unroll
      for (int i = 0; i < Config::kMTiles; ++i) {
        Wgmma<Config::kN, 1, 1>::multiply(acc[i],
                                          advance_descriptor(a, i * Config::kABoxBytes + k16 * 16 * 64 * 2),
                                          advance_descriptor(b, k16 * 16 * Config::kSpan * 2), 1);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
    if (step > 0 && lane == 0) mbarrier_arrive(smem.empty(previous));
    previous = at.stage;
    at.advance();
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
  wgrad_store<Config>(acc, first_k + group_m * Config::kMTiles * 64, first_box + group_n * kGroupBoxes, out,
                      g);
}

// blockIdx: x column tile, y row tile, z split.
template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_wgrad_wgmma_kernel(
    const __grid_constant__ CUtensorMap dy,  // [N*P*Q,K]
    const __grid_constant__ CUtensorMap x,   // [N,H,W,c_stride], im2col
    float* __restrict__ partial,             // [splits,K,R,S,C]
    const __grid_constant__ WgradWgmmaShape g) {
  extern __shared__ unsigned char raw[];
  const WgradWgmmaSmem<Config> smem = {(smem_address(raw) + Config::kAlignment - 1) / Config::kAlignment *
                                       Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kGroups * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  const int first_k = blockIdx.y * Config::kBM, first_box = blockIdx.x * Config::kBBoxes;
  const int first_pixel = blockIdx.z * g.pixels_per_split;
  const int pixels = min(g.pixels - first_pixel, g.pixels_per_split);
  const int steps = (pixels + Config::kBK - 1) / Config::kBK;
  if (threadIdx.x / 128 == Config::kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x / 32 == Config::kGroups * 4) {
      wgrad_produce<Config>(&dy, &x, smem, first_k, first_box, first_pixel, steps, g);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    wgrad_consume<Config>(smem, first_k, first_box, steps,
                          partial + static_cast<size_t>(blockIdx.z) * g.k * g.columns, g);
  }
}

}  // namespace kiln
