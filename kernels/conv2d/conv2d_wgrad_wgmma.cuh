// The product behind wgrad on Hopper's tensor cores (sm_90a):
//
//   partial[split][k, (r,s,c)] = sum over the split's output pixels m of dy[m, k] * x[pixel(m) displaced by
//   (r,s), c]
//
// Both operands have the summed index m as rows in memory, so both tiles are MN-major: boxes of kBK pixels x
// 64 output channels of dy, and of kBK pixels x kSpan input channels of x for one tap. A column of boxes is a
// pair (tap, channel slice); the last slice of a tap may be part zeros, which is not stored. A step's kBK
// pixels are neighbours, gathered by im2col mode (walk "pixels"), or one output position in kBK images (walk
// "images"): then a tile of one tap leaves out the positions where the tap lies on padding, and each copy is
// a plain box. A block sums one kBM x kBN tile over one part of its steps: lane i of the producer warp starts
// the copy of box i of each stage, consumer warpgroups are laid out kGroupsM x kGroupsN over the tile,
// kMTiles x 64 by kN each. Two blocks of a cluster may share a part: each sums half of its steps, then they
// exchange halves of their sums, so that half as many sums go through memory. With even shares a block has
// parts of several tiles, one after the other; the ring does not stop between them. The engine's zeros beyond
// the last image stand for missing pixels. Deterministic.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/conv2d/conv2d_wgrad_wgmma_layout.h"
#include "kernels/conv2d/conv2d_wgrad_wgmma_work.cuh"

namespace kiln {

template <class Config>
struct WgradWgmmaSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Config::kABytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + Config::kStages * Config::kStageBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
  __device__ __forceinline__ uint32_t given() const { return full(2 * Config::kStages); }
};

// The producer warp's copies of one part: a box a lane, those beyond the last output channel or column are
// left out (their products are not stored). Every lane waits for the stage; lane 0 announces all of its
// bytes, which may come before or after bytes have arrived: the phase cannot end before lane 0's arrival.
template <class Config>
__device__ __forceinline__ void wgrad_produce(const CUtensorMap* dy, const CUtensorMap* x,
                                              WgradWgmmaSmem<Config> smem, const WgradWork& work,
                                              RingPosition<Config::kStages>& at, const WgradWgmmaShape& g) {
  const int lane = threadIdx.x % 32, b_box = lane - Config::kABoxes;
  const int a_boxes = min(Config::kABoxes, (g.k - work.first_k + 63) / 64);
  const int b_boxes = min(Config::kBBoxes, g.column_boxes - work.first_box);
  const uint32_t bytes = a_boxes * Config::kABoxBytes + b_boxes * Config::kBBoxBytes;
  const int box = work.first_box + max(b_box, 0), tap = box / g.slices, c0 = box % g.slices * Config::kSpan;
  const int r = tap / g.s, s = tap % g.s;
  const WgradWindow& window = work.window;
  const int width = max(window.q, 1), height = max(window.p, 1);
  int q = work.first_step % width, p = work.first_step / width % height;
  int block = work.first_step / width / height;
  for (int step = 0; step < work.steps; ++step, at.advance()) {
    const int out_q = window.first_q + q, out_p = window.first_p + p, row = block * Config::kBK;
    mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
    if (lane == 0) mbarrier_arrive_expect(smem.full(at.stage), bytes);
    __syncwarp();
    if (lane < a_boxes) {
      const int k = work.first_k + lane * 64;
      const uint32_t to = smem.a(at.stage) + lane * Config::kABoxBytes;
      if (g.by_image) {
        tma_load_4d(to, dy, smem.full(at.stage), k, out_q, out_p, row);
      } else {
        tma_load_4d(to, dy, smem.full(at.stage), k, row, 0, 0);
      }
    } else if (b_box >= 0 && b_box < b_boxes) {
      const uint32_t to = smem.b(at.stage) + b_box * Config::kBBoxBytes;
      if (g.by_image) {
        tma_load_4d(to, x, smem.full(at.stage), c0, out_q * g.stride_w - g.pad_w + s,
                    out_p * g.stride_h - g.pad_h + r, row);
      } else {
        const int image = row / (g.p * g.q), position = row % (g.p * g.q);
        tma_load_im2col(to, x, smem.full(at.stage), c0, position % g.q * g.stride_w - g.pad_w,
                        position / g.q * g.stride_h - g.pad_h, image, s, r);
      }
    }
    if (++q == width) {
      q = 0;
      if (++p == height) p = 0, ++block;
    }
  }
}

// All threads of both blocks of a pair. It orders no stores: a barrier that releases waits until all of them
// are seen everywhere, and here only reads of the ring, which have ended, come before it.
__device__ __forceinline__ void wgrad_pair_ready() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// Of each thread's rows l/4 and l/4 + 8, block `rank` of a pair keeps the ones that rank numbers and gives
// away the others, through the ring, which both blocks have read by then. Each 16 bytes report themselves to
// the other block's barrier `given`, so that no thread waits for its own stores, and no block leaves before
// it has what the other one sends. The kept sums are complete after it.
template <class Config>
__device__ __forceinline__ void wgrad_exchange(float (&acc)[Config::kMTiles][Config::kN / 2],
                                               WgradWgmmaSmem<Config> smem, int rank) {
  constexpr uint32_t kTurn = Config::kGroups * 128 * 16;  // bytes: 16 a thread, again every so many
  static_assert(Config::kGivenBytes <= Config::kStages * Config::kStageBytes, "the halves fit into the ring");
  static_assert(Config::kN % 16 == 0, "16 bytes are the halves of two pieces of 8 columns");
  const uint32_t mine = smem.base + threadIdx.x * 16;
  uint32_t theirs, given;
  wgrad_pair_ready();
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(theirs) : "r"(mine), "r"(rank ^ 1));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(given) : "r"(smem.given()), "r"(rank ^ 1));
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kN / 16; ++j) {
      const float* v = &acc[i][8 * j];
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, "
          "[%1];\n" ::"r"(theirs + (i * (Config::kN / 16) + j) * kTurn),
          "r"(given), "f"(rank ? v[0] : v[2]), "f"(rank ? v[1] : v[3]), "f"(rank ? v[4] : v[6]),
          "f"(rank ? v[5] : v[7])
          : "memory");
    }
  }
  mbarrier_wait(smem.given(), 0);
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kN / 16; ++j) {
      float* v = &acc[i][8 * j];
      float other[4];
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
                   : "=f"(other[0]), "=f"(other[1]), "=f"(other[2]), "=f"(other[3])
                   : "r"(mine + (i * (Config::kN / 16) + j) * kTurn)
                   : "memory");
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        v[e] = v[2 + e] = (rank ? v[2 + e] : v[e]) + other[e];
        v[4 + e] = v[6 + e] = (rank ? v[6 + e] : v[4 + e]) + other[2 + e];
      }
    }
  }
}

// Writes a warpgroup's accumulators: rows from `first_k`, boxes of columns from `first_box`; of a pair each
// block the rows it keeps.
template <class Config>
__device__ __forceinline__ void wgrad_store(const float (&acc)[Config::kMTiles][Config::kN / 2], int first_k,
                                            int first_box, int rank, float* __restrict__ out,
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
        if (g.pair > 1 && half != rank) continue;
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

// A consumer warpgroup: multiplies its share of every stage of one part, then stores its sums.
template <class Config>
__device__ __forceinline__ void wgrad_consume(WgradWgmmaSmem<Config> smem, const WgradWork& work, float* out,
                                              RingPosition<Config::kStages>& at, const WgradWgmmaShape& g) {
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  const int group_m = group / Config::kGroupsN, group_n = group % Config::kGroupsN;
  constexpr int kGroupBoxes = Config::kN / Config::kSpan;
  float acc[Config::kMTiles][Config::kN / 2] = {};
  int previous = 0;
  for (int step = 0; step < work.steps; ++step) {
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
  if (work.steps > 0 && lane == 0) mbarrier_arrive(smem.empty(previous));
  if (g.pair > 1) wgrad_exchange<Config>(acc, smem, work.rank);
  wgrad_store<Config>(acc, work.first_k + group_m * Config::kMTiles * 64,
                      work.first_box + group_n * kGroupBoxes, work.rank, out, g);
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_wgrad_wgmma_kernel(
    const __grid_constant__ CUtensorMap dy,  // [N,P,Q,K], or [N*P*Q,K]
    const __grid_constant__ CUtensorMap x,   // [N,H,W,c_stride], tiled or im2col
    float* __restrict__ partial,             // [parts,K,R,S,C]
    float* __restrict__ dw,                  // [K,R,S,C]: of tiles that have one part
    const __grid_constant__ WgradWgmmaShape g) {
  extern __shared__ unsigned char raw[];
  const WgradWgmmaSmem<Config> smem = {(smem_address(raw) + Config::kAlignment - 1) / Config::kAlignment *
                                       Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kGroups * 4);
    }
    mbarrier_init(smem.given(), 1);
    fence_barrier_init();
    mbarrier_arrive_expect(smem.given(), Config::kGivenBytes);
  } else if (threadIdx.x == 32) {
    tma_prefetch_map(&dy);
    tma_prefetch_map(&x);
  }
  __syncthreads();  // barriers are initialised
  let_next_start();
  WgradWork work = wgrad_work<Config>(g);
  wait_for_last();  // nothing but this kernel's parameters has been read
  if (threadIdx.x / 128 == Config::kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x / 32 == Config::kGroups * 4) {
      RingPosition<Config::kStages> at;
      do {
        wgrad_produce<Config>(&dy, &x, smem, work, at, g);
      } while (wgrad_next<Config>(work, g));
    }
    __syncwarp();
    if (g.pair > 1) wgrad_pair_ready();  // the exchange takes all threads of both blocks
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    RingPosition<Config::kStages> at;
    do {
      float* out = work.window.parts == 1 ? dw : partial + static_cast<size_t>(work.part) * g.k * g.columns;
      wgrad_consume<Config>(smem, work, out, at, g);
    } while (wgrad_next<Config>(work, g));
  }
}

}  // namespace kiln
