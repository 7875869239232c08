// What a block of `stream` does, conv2d's wgrad of a 1x1 filter with few channels: see
// conv2d_wgrad_tma_stream.cu. Behind the ring's stages in shared memory lie the barriers, one pair a stage.
#pragma once

#include <cstdint>

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"

namespace kiln {
namespace {

constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
constexpr int kLine = 64;         // elements of a row of a copy
constexpr int kMostStages = 8;    // of the ring: where it has room for more, chunks are larger

// A warp has kMTiles x 16 by kNTiles x 8 sums.
template <int kMTiles_, int kNTiles_, int kSlices_, int kPixelGroups_>
struct StreamConfig {
  static constexpr int kMTiles = kMTiles_, kNTiles = kNTiles_;
  static constexpr int kSlices = kSlices_, kPixelGroups = kPixelGroups_;
  static constexpr int kWarps = kSlices * kPixelGroups, kThreads = (kWarps + 1) * 32;  // and the producer
  static constexpr int kTiles = kSlices * kMTiles * kNTiles;
  static constexpr int kSumBytes = kPixelGroups * kTiles * 32 * 16;
  static_assert(kMTiles * kNTiles <= 16, "a warp's sums leave registers for the second launch's blocks");
  static constexpr bool holds(int wide, int narrow) {
    return wide <= kSlices * kMTiles * 16 && narrow <= kNTiles * 8;
  }
};

struct StreamShape {
  int wide, narrow;         // channels
  bool x_is_wide;           // else dy
  int chunks, chunk_lines;  // chunks of chunk_lines * 64 pixels, so many rows of a copy for each channel
  int stages;               // of the ring
  int apart_log2;           // of pixels that are neighbours in a product, see apart_log2()
};

struct StreamSmem {
  uint32_t base;
  int stage_bytes, stages;
  __device__ __forceinline__ uint32_t wide(int stage) const { return base + stage * stage_bytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + stages * stage_bytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kMostStages + stage); }
};

// Where the 128-byte swizzle puts the 16 bytes at `offset`.
__device__ __forceinline__ uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 3 & 0x70); }

// One thread: every gridDim.x-th chunk.
__device__ __forceinline__ void stream_produce(const CUtensorMap* wide, const CUtensorMap* narrow,
                                               const StreamSmem& smem, const StreamShape& g) {
  const int wide_lines = g.chunk_lines * g.wide, narrow_lines = g.chunk_lines * g.narrow;
  int stage = 0;
  uint32_t parity = 0;
  for (int chunk = blockIdx.x; chunk < g.chunks; chunk += gridDim.x) {
    mbarrier_wait(smem.empty(stage), parity ^ 1);
    mbarrier_arrive_expect(smem.full(stage), smem.stage_bytes);
    tma_load_3d(smem.wide(stage), wide, smem.full(stage), 0, chunk * wide_lines, 0);
    tma_load_3d(smem.wide(stage) + wide_lines * kLine * 2, narrow, smem.full(stage), 0, chunk * narrow_lines,
                0);
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
}

// A consumer warp: its sums over its pixels of all of the block's chunks. Tiles beyond the last channel
// repeat it and are not stored.
template <class Config>
__device__ __forceinline__ void stream_multiply(float (&acc)[Config::kMTiles][Config::kNTiles][4],
                                                const StreamSmem& smem, const StreamShape& g) {
  constexpr int kPairs = (Config::kNTiles + 1) / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = warp % Config::kSlices, group = warp / Config::kSlices;
  const int a_slot = lane % 8 + lane / 16 * 8, b_slot = lane % 8 + lane / 8 % 2 * 8;  // pixel of a product
  uint32_t a_piece[Config::kMTiles], b_piece[kPairs];
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
    a_piece[i] = 16 * min((slice * Config::kMTiles + i) * 2 + lane / 8 % 2, g.wide / 8 - 1);
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) b_piece[j] = 16 * min(j * 2 + lane / 16, g.narrow / 8 - 1);
  const int steps = 4 * g.chunk_lines, apart = g.apart_log2;
  int stage = 0;
  uint32_t parity = 0;
  for (int chunk = blockIdx.x; chunk < g.chunks; chunk += gridDim.x) {
    mbarrier_wait(smem.full(stage), parity);
    const uint32_t a_tile = smem.wide(stage), b_tile = a_tile + g.chunk_lines * g.wide * kLine * 2;
    for (int step = group; step < steps; step += Config::kPixelGroups) {
      const int first = (step >> apart << (apart + 4)) + (step & ((1 << apart) - 1));
      const uint32_t a_row = (first + (a_slot << apart)) * g.wide * 2;
      const uint32_t b_row = (first + (b_slot << apart)) * g.narrow * 2;
      uint32_t a[Config::kMTiles][4], b[kPairs][4];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) ldmatrix_x4<true>(b[j], b_tile + swizzled(b_row + b_piece[j]));
#pragma unroll
      for (int m = 0; m < Config::kMTiles; ++m) {
        ldmatrix_x4<true>(a[m], a_tile + swizzled(a_row + a_piece[m]));
      }
#pragma unroll
      for (int m = 0; m < Config::kMTiles; ++m) {
#pragma unroll
        for (int j = 0; j < Config::kNTiles; ++j) {
          mma_bf16(acc[m][j], a[m], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(smem.empty(stage));
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
}

// The groups' sums of the block added in order and written, by all threads.
template <class Config>
__device__ __forceinline__ void stream_store(const float4* sums,  // [kPixelGroups][kTiles][32]
                                             float* out,          // [K,C]
                                             const StreamShape& g) {
  const int lane = threadIdx.x % 32;
  for (int tile = threadIdx.x / 32; tile < Config::kTiles; tile += Config::kThreads / 32) {
    const int column = tile % Config::kNTiles * 8 + 2 * (lane % 4);
    float4 sum = sums[tile * 32 + lane];
#pragma unroll
    for (int group = 1; group < Config::kPixelGroups; ++group) {
      const float4 v = sums[(group * Config::kTiles + tile) * 32 + lane];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile / Config::kNTiles * 16 + half * 8 + lane / 4;
      const float2 pair = half ? make_float2(sum.z, sum.w) : make_float2(sum.x, sum.y);
      if (row >= g.wide || column >= g.narrow) continue;
      if (g.x_is_wide) {
        out[column * g.wide + row] = pair.x;
        out[(column + 1) * g.wide + row] = pair.y;
      } else {
        *reinterpret_cast<float2*>(out + row * g.narrow + column) = pair;
      }
    }
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_wgrad_stream_kernel(
    const __grid_constant__ CUtensorMap wide,    // x [N*H*W*C/64, 64], or dy
    const __grid_constant__ CUtensorMap narrow,  // dy [N*H*W*K/64, 64], or x
    float* partial,                              // [blocks,K,C]
    const __grid_constant__ StreamShape g) {
  extern __shared__ unsigned char raw[];
  const uint32_t unaligned = smem_address(raw), base = (unaligned + kAlignment - 1) / kAlignment * kAlignment;
  const StreamSmem smem = {base, g.chunk_lines * (g.wide + g.narrow) * kLine * 2, g.stages};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&wide);
    tma_prefetch_map(&narrow);
    for (int i = 0; i < g.stages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  let_next_start();
  wait_for_last();
  float acc[Config::kMTiles][Config::kNTiles][4] = {};
  if (warp == Config::kWarps) {
    if (lane == 0) stream_produce(&wide, &narrow, smem, g);
    __syncwarp();
  } else {
    stream_multiply<Config>(acc, smem, g);
  }
  float4* sums = reinterpret_cast<float4*>(raw + (base - unaligned));
  __syncthreads();  // all copies have arrived and been read: the ring is free
  if (warp < Config::kWarps) {
    const int slice = warp % Config::kSlices, group = warp / Config::kSlices;
    const int first = group * Config::kTiles + slice * Config::kMTiles * Config::kNTiles;
#pragma unroll
    for (int m = 0; m < Config::kMTiles; ++m) {
#pragma unroll
      for (int j = 0; j < Config::kNTiles; ++j) {
        const float* v = acc[m][j];
        sums[(first + m * Config::kNTiles + j) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  __syncthreads();  // the sums are in shared memory
  stream_store<Config>(sums, partial + static_cast<size_t>(blockIdx.x) * g.wide * g.narrow, g);
}

}  // namespace
}  // namespace kiln
