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
// kMTiles x 64 by kN each. The engine's zeros beyond the last image stand for missing pixels. Deterministic.
#pragma once

#include "kernels/common/host_device.h"
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
  bool by_image;   // the walk
  int blocks;      // of kBK images, or of kBK pixels
  int h, w, p, q;  // input and output map
  int stride_h, stride_w, pad_h, pad_w;
  int k, c;          // channels
  int s;             // filter width
  int slices;        // boxes of kSpan channels that cover c
  int column_boxes;  // taps * slices
  int columns;       // R*S*C
  int tile_boxes;    // boxes of a column tile
  int row_tiles;
  int part_steps;  // most steps of a part
};

// The steps of a column tile: output rows first_p..+p by columns first_q..+q in every block of images.
struct WgradWindow {
  int first_p, p, first_q, q;
  int steps, parts;
};

// Output positions [first, first + count) of `out` whose input position under filter offset `tap` exists.
KILN_HOST_DEVICE inline void wgrad_inside(int out, int in, int stride, int pad, int tap, int* first,
                                          int* count) {
  const int below = pad - tap, above = in - 1 + pad - tap;
  *first = below > 0 ? (below + stride - 1) / stride : 0;
  const int end = above < 0 ? 0 : above / stride + 1;
  *count = (end < out ? end : out) - *first;
  if (*count < 0) *count = 0;
}

KILN_HOST_DEVICE inline WgradWindow wgrad_window(const WgradWgmmaShape& g, int first_box) {
  WgradWindow window = {0, 1, 0, 1, g.blocks, 1};
  if (g.by_image) {
    const int beyond = first_box + g.tile_boxes;
    const int tap = first_box / g.slices, last = (beyond < g.column_boxes ? beyond : g.column_boxes) - 1;
    window.p = g.p;
    window.q = g.q;
    if (last / g.slices == tap) {
      wgrad_inside(g.p, g.h, g.stride_h, g.pad_h, tap / g.s, &window.first_p, &window.p);
      wgrad_inside(g.q, g.w, g.stride_w, g.pad_w, tap % g.s, &window.first_q, &window.q);
    }
    window.steps *= window.p * window.q;
  }
  if (window.steps > g.part_steps) window.parts = (window.steps + g.part_steps - 1) / g.part_steps;
  return window;
}

// Parts of the tile that holds element i of dw; 0 where the only part has written dw.
struct WgradRanges {
  WgradWgmmaShape g;
  int span;
  __device__ __forceinline__ int operator()(int i) const {
    const int column = i % g.columns, box = column / g.c * g.slices + column % g.c / span;
    const int parts = wgrad_window(g, box / g.tile_boxes * g.tile_boxes).parts;
    return parts > 1 ? parts : 0;
  }
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

// What a block does.
struct WgradWork {
  WgradWindow window;
  int first_k, first_box;
  int part, first_step, steps;
};

// Blocks go through the column tiles, in one through its parts, in one through the row tiles.
template <class Config>
__device__ __forceinline__ WgradWork wgrad_work(const WgradWgmmaShape& g) {
  WgradWork work = {};
  int block = blockIdx.x;
  for (;; work.first_box += Config::kBBoxes) {
    work.window = wgrad_window(g, work.first_box);
    const int blocks = work.window.parts * g.row_tiles;
    if (block < blocks) break;
    block -= blocks;
  }
  work.part = block / g.row_tiles;
  work.first_k = block % g.row_tiles * Config::kBM;
  const long long steps = work.window.steps;
  work.first_step = static_cast<int>(steps * work.part / work.window.parts);
  work.steps = static_cast<int>(steps * (work.part + 1) / work.window.parts) - work.first_step;
  return work;
}

// The producer warp: a box a lane, those beyond the last output channel or column are left out (their
// products are not stored). Every lane waits for the stage; lane 0 announces all of its bytes, which may come
// before or after bytes have arrived: the phase cannot end before lane 0's arrival.
template <class Config>
__device__ __forceinline__ void wgrad_produce(const CUtensorMap* dy, const CUtensorMap* x,
                                              WgradWgmmaSmem<Config> smem, const WgradWork& work,
                                              const WgradWgmmaShape& g) {
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
  RingPosition<Config::kStages> at;
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
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  const WgradWork work = wgrad_work<Config>(g);
  if (threadIdx.x / 128 == Config::kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x / 32 == Config::kGroups * 4) wgrad_produce<Config>(&dy, &x, smem, work, g);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    float* out = work.window.parts == 1 ? dw : partial + static_cast<size_t>(work.part) * g.k * g.columns;
    wgrad_consume<Config>(smem, work.first_k, work.first_box, work.steps, out, g);
  }
}

}  // namespace kiln
