// What fwd and dgrad of register_tma share, register_tile's product fed by the copy engine (wgrad's is in its
// own file and takes the small parts).
//
//   out[m,n] = sum_d A[d,m] * B[d,n]
//
// with m a pixel of the result, n its channel, d = (tap, source channel), in steps of 16 channels of one tap.
// A block of four warps owns kM x kN results, a thread kTm x kTn as in conv2d_register_tile.cuh. A step's
// patch of A comes by im2col as it lies in memory, deep [kM][16] with a 64-byte swizzle, and is turned to
// across, [16][kM], inside shared memory: so both operands are read four neighbours of one depth at a time,
// for which the registers' two banks suffice. B is across in memory. Shared memory: two patches that arrive,
// two turned, four slices of B, 48 to 64 KiB. Channels beyond the source's are zeros. Needs compute
// capability 9.0.
#pragma once

#include "kernels/common/check.h"
#include "kernels/common/fast_divisor.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/conv2d/conv2d_register_plan.h"
#include "kernels/conv2d/conv2d_register_tile.cuh"
#include "kernels/conv2d/conv2d_wgmma_gather.cuh"

namespace kiln {

// kRowsOuter: a step's products go along the rows of a thread's results, else along its columns; which one
// the compiler gives the better registers differs by tile.
template <int M, int N, int Tm, int Tn, int Blocks, bool kRowsOuter_>
struct TurnedTile : RegisterTile<M, N, Tm, Tn, Blocks> {
  static constexpr bool kRowsOuter = kRowsOuter_;
  static constexpr int kPatchBytes = M * 64, kFilterBytes = N * 64;
  static constexpr int kGroups = M / 32;  // of 32 pixels
  static constexpr int kAlignment = 512;  // the swizzle's period
  static constexpr int kSmemBytes = 4 * kPatchBytes + 4 * kFilterBytes + kAlignment;
  static_assert(TurnedTile::kThreads == 128, "each warp turns four of a step's 16 channels");
  static_assert(8 * Tm % 32 == 0, "a warp reads whole groups of 32 pixels");
};

struct TurnedShape {
  int rows, columns;  // pixels and channels of the result
  int steps, chunks;  // of all; of a tap
  int taps, taps_w;   // of the filter, of its row
  int column_tiles;
  int out_w, out_h;                            // of the result
  int stride_w, stride_h, origin_w, origin_h;  // pixel (w,h) gathers from (origin + stride * its index) on
  FastDivisor by_chunks, by_taps_w, by_out_w, by_out_h;
};

// Where a block's pixels begin in the source, and its columns.
struct TurnedCorner {
  int w, h, n, column;
};
__device__ __forceinline__ TurnedCorner turned_corner(const TurnedShape& g, int first_m, int first_n) {
  const int line = g.by_out_w.divide(first_m), image = g.by_out_h.divide(line);
  return {(first_m - line * g.out_w) * g.stride_w + g.origin_w,
          (line - image * g.out_h) * g.stride_h + g.origin_h, image, first_n};
}

__device__ __forceinline__ Vec<float, 4> load_four(uint32_t from) {
  Vec<float, 4> v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.v[0]), "=f"(v.v[1]), "=f"(v.v[2]), "=f"(v.v[3])
               : "r"(from));
  return v;
}
__device__ __forceinline__ void store_four(uint32_t to, const uint32_t (&v)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]),
               "r"(v[3])
               : "memory");
}

// A thread's part in turning: matrices of ldmatrix are 8 pixels x 4 channels, and lane l receives pixel l/4,
// channel l%4 of four of them, which one store of 16 bytes puts side by side. So a warp turns 32 pixels of
// its four channels with two instructions. In a channel's row, position 4g+i of a group of 32 is pixel g+8i,
// as RegisterPlace has it, and the 16 bytes of g lie at g ^ 2*(channel%4), in eight different sets of banks
// for those who write as for those who read.
struct Turning {
  uint32_t from, to;  // bytes within a patch and a turned patch
};
template <class Tile>
__device__ __forceinline__ Turning turning(int warp, int lane) {
  return {static_cast<uint32_t>(lane * 64 + ((warp ^ (lane >> 1 & 3)) << 4)),
          static_cast<uint32_t>((4 * warp + lane % 4) * (Tile::kM * 4) + ((lane / 4 ^ 2 * (lane % 4)) << 4))};
}

// acc += A^T * B of one depth. Each line of products goes back where the last one ended, so that an operand
// stays in the operand cache.
template <class Tile>
__device__ __forceinline__ void add_products(const Vec<float, 4> (&a)[Tile::kTm / 4],
                                             const Vec<float, 4> (&b)[Tile::kTn / 4],
                                             float (&acc)[Tile::kTm][Tile::kTn]) {
  constexpr int kOuter = Tile::kRowsOuter ? Tile::kTm : Tile::kTn;
  constexpr int kInner = Tile::kRowsOuter ? Tile::kTn : Tile::kTm;
#pragma unroll
  for (int outer = 0; outer < kOuter; ++outer) {
#pragma unroll
    for (int step = 0; step < kInner; ++step) {
      const int inner = outer % 2 == 0 ? step : kInner - 1 - step;
      const int i = Tile::kRowsOuter ? outer : inner, j = Tile::kRowsOuter ? inner : outer;
      acc[i][j] = fmaf(a[i / 4].v[i % 4], b[j / 4].v[j % 4], acc[i][j]);
    }
  }
}

// The block's product. `kBack` (dgrad): the filter lies [source channel][tap][column] and its taps are taken
// from the last to the first; else [tap][source channel][column]. `start`: kSmemBytes of shared memory less
// what its alignment takes; `full`: two mbarriers that one arrival ends.
//
// In step s the block multiplies turned patch s%2 and turns patch s+1. Behind the barrier at the step's end
// none reads the latter as it came, nor the filter's slice s-1: one thread starts the copies of step s+3 over
// them.
template <class Tile, bool kBack>
__device__ __forceinline__ void turned_multiply(const CUtensorMap& src, const CUtensorMap& filter,
                                                const TurnedShape& g, const TurnedCorner& corner,  // shared
                                                uint32_t start, uint32_t full,
                                                float (&acc)[Tile::kTm][Tile::kTn]) {
  constexpr int kPatch = Tile::kPatchBytes, kFilter = Tile::kFilterBytes;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const uint32_t turned = start + 2 * kPatch, filters = turned + 2 * kPatch;
  const auto load = [&](int step) {  // one thread
    const int tap = g.by_chunks.divide(step), r = g.by_taps_w.divide(tap), s = tap - r * g.taps_w;
    const int d = (step - tap * g.chunks) * Tile::kDepth;
    const uint32_t barrier = full + (step & 1) * 8, to = filters + (step & 3) * kFilter;
    mbarrier_arrive_expect(barrier, kPatch + kFilter);
    tma_load_im2col(start + (step & 1) * kPatch, &src, barrier, d, corner.w, corner.h, corner.n, s, r);
    if (kBack) {
      tma_load_4d(to, &filter, barrier, corner.column, g.taps - 1 - tap, d, 0);
    } else {
      tma_load_4d(to, &filter, barrier, corner.column, d, tap, 0);
    }
  };
  if (threadIdx.x == 0) {
    load(0);
    if (g.steps > 1) load(1);
  }
  const Turning turn = turning<Tile>(warp, lane);
  const RegisterPlace<Tile, true> place;
  const uint32_t a0 = place.warp_m * 4 + place.lane_m * 16, b0 = place.n(0) * 4;

  mbarrier_wait(full, 0);
#pragma unroll
  for (int u = 0; u < Tile::kGroups; ++u) {
    uint32_t group[4];
    ldmatrix_x4<false>(group, start + turn.from + u * 2048);
    store_four(turned + turn.to + u * 128, group);
  }
  __syncthreads();
  if (threadIdx.x == 0 && g.steps > 2) load(2);

#pragma unroll 1
  for (int step = 0; step < g.steps; ++step) {
    const int next = step + 1;
    const uint32_t a = turned + (step & 1) * kPatch + a0, b = filters + (step & 3) * kFilter + b0;
    const uint32_t from = start + (next & 1) * kPatch + turn.from;
    const uint32_t to = turned + (next & 1) * kPatch + turn.to;
    uint32_t group[Tile::kGroups][4];
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) {
      if (d == 1 && next < g.steps) mbarrier_wait(full + (next & 1) * 8, next >> 1 & 1);
#pragma unroll
      for (int u = 0; u < Tile::kGroups; ++u) {  // in the last step of what lies there, which none reads
        if (d == 2 + 2 * u) ldmatrix_x4<false>(group[u], from + u * 2048);
        if (d == 3 + 2 * u) store_four(to + u * 128, group[u]);
      }
      Vec<float, 4> am[Tile::kTm / 4], bn[Tile::kTn / 4];
#pragma unroll
      for (int i = 0; i < Tile::kTm / 4; ++i)
        am[i] = load_four((a ^ (d % 4 << 5)) + d * (Tile::kM * 4) + i * 128);
#pragma unroll
      for (int j = 0; j < Tile::kTn / 4; ++j) bn[j] = load_four(b + d * (Tile::kN * 4) + j * 64);
      add_products<Tile>(am, bn, acc);
    }
    __syncthreads();
    if (step + 3 < g.steps && warp == (step & 3) && lane == 0) load(step + 3);
  }
}

// Sets a block up: its barriers and its corner. Ends with a __syncthreads().
__device__ __forceinline__ void turned_begin(const TurnedShape& g, int first_m, int first_n,
                                             uint64_t (&full)[2],     // shared
                                             TurnedCorner& corner) {  // shared
  if (threadIdx.x == 0) {
    mbarrier_init(smem_address(&full[0]), 1);
    mbarrier_init(smem_address(&full[1]), 1);
    fence_barrier_init();
    corner = turned_corner(g, first_m, first_n);
  }
  __syncthreads();
}
template <class Tile>
__device__ __forceinline__ uint32_t turned_start(const unsigned char* raw) {
  return (smem_address(raw) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
}

// Host side.

// What the three passes ask for beyond their own rules.
inline Support register_tma_supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("the copy engine needs compute capability 9.0");
  if (p.stride_h > 8 || p.stride_w > 8) return Support::no("strides must be at most 8 (im2col steps)");
  return register_tile_supports(p);
}

inline int turned_steps(const WgmmaGather& gather) {
  return gather.shape.r * gather.shape.s * ceil_div(gather.src.c, 16);
}

template <class Tile>
TurnedShape turned_shape(const WgmmaGather& gather) {
  const WgmmaShape& s = gather.shape;
  const int chunks = ceil_div(gather.src.c, Tile::kDepth);
  return {.rows = s.rows,
          .columns = s.columns,
          .steps = turned_steps(gather),
          .chunks = chunks,
          .taps = s.r * s.s,
          .taps_w = s.s,
          .column_tiles = ceil_div(s.columns, Tile::kN),
          .out_w = s.out_w,
          .out_h = s.out_h,
          .stride_w = s.stride_w,
          .stride_h = s.stride_h,
          .origin_w = s.origin_w,
          .origin_h = s.origin_h,
          .by_chunks = FastDivisor(chunks),
          .by_taps_w = FastDivisor(s.s),
          .by_out_w = FastDivisor(s.out_w),
          .by_out_h = FastDivisor(s.out_h)};
}

template <class Tile>
unsigned turned_blocks(const TurnedShape& g) {
  return ceil_div(g.rows, Tile::kM) * g.column_tiles;
}

template <class Tile>
CUtensorMap turned_source_map(const WgmmaGather& gather, const void* base) {
  Im2colMap map = gather.src;
  map.base = base;
  map.channels = Tile::kDepth;
  map.pixels = Tile::kM;
  map.element_bytes = 4;
  return make_im2col_map(map);
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, int bytes, const char* name) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             name);
}

// Whether register_tma's cheapest tile is thought to take less time than register_tile's `portable`, both
// costs a step's (register_cost). register_tile's steps go on over the taps, those here begin anew with each,
// which few channels make dear. `extra`: of launches beside the product, in the same unit over all steps.
// Products of few steps are left to register_tile: there the first step's way through shared memory is not
// hidden.
inline bool turned_preferred(const WgmmaGather& gather, double own, double portable, double extra) {
  const int steps = turned_steps(gather);
  const int portable_steps = ceil_div(gather.shape.r * gather.shape.s * gather.src.c, 16);
  return steps >= 8 && own * steps + extra < portable * portable_steps;
}

}  // namespace kiln
