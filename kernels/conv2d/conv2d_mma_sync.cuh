// What the mma.sync convolutions share: the warp's product of two shared-memory tiles and the staged store of
// the accumulators.
#pragma once

#include "kernels/common/mma.cuh"

namespace kiln {

// kBM x kBN outputs a block, kWarpsM x kWarpsN warps, kBK products a stage, kStages stages in flight.
template <int kBM_, int kBN_, int kWarpsM_, int kWarpsN_, int kBK_ = 32, int kStages_ = 4>
struct MmaConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kBK = kBK_, kStages = kStages_;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kWM = kBM / kWarpsM, kWN = kBN / kWarpsN;  // a warp's tile
  static constexpr int kMT = kWM / 16, kNT = kWN / 8;             // in m16n8 products
  static constexpr int kStageBytes = (kBM + kBN) * kBK * 2;
  static constexpr int kStoreStride = kBN + 8;  // elements; the 16 bytes of padding spread rows over banks
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static constexpr int kStoreBytes = kBM * kStoreStride * 2;
  static constexpr int kSmemBytes = kPipelineBytes > kStoreBytes ? kPipelineBytes : kStoreBytes;
  static_assert(kWM % 16 == 0 && kWN % 16 == 0, "a warp's tile is whole ldmatrix.x4 loads");
  static_assert(kBK % 16 == 0, "a stage is whole k16 steps");
};

template <class Config>
struct Accumulators {
  float v[Config::kMT][Config::kNT][4];
};

// acc += A * B for one stage. A is [kBM][kBK], or with kATransposed [kBK][kBM]; B is [kBN][kBK], or with
// kBTransposed [kBK][kBN]; both SwizzledTile. May be called once the stage's copies are visible to the block.
template <class Config, bool kATransposed, bool kBTransposed>
__device__ __forceinline__ void mma_stage(Accumulators<Config>& acc, uint32_t a_tile, uint32_t b_tile,
                                          int warp_m, int warp_n) {
  using ATile = SwizzledTile<kATransposed ? Config::kBM : Config::kBK>;
  using BTile = SwizzledTile<kBTransposed ? Config::kBN : Config::kBK>;
  const int lane = threadIdx.x % 32, row8 = lane % 8, low = (lane / 8) & 1, high = lane / 16;
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
    uint32_t a[Config::kMT][4], b[Config::kNT / 2][4];
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
      const int m = warp_m * Config::kWM + i * 16;
      const uint32_t offset = kATransposed ? ATile::offset(k16 * 16 + row8 + high * 8, m / 8 + low)
                                           : ATile::offset(m + row8 + low * 8, k16 * 2 + high);
      ldmatrix_x4<kATransposed>(a[i], a_tile + offset);
    }
#pragma unroll
    for (int j = 0; j < Config::kNT / 2; ++j) {
      const int n = warp_n * Config::kWN + j * 16;
      const uint32_t offset = kBTransposed ? BTile::offset(k16 * 16 + row8 + low * 8, n / 8 + high)
                                           : BTile::offset(n + row8 + high * 8, k16 * 2 + low);
      ldmatrix_x4<kBTransposed>(b[j], b_tile + offset);
    }
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kNT; ++j) {
        mma_bf16(acc.v[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
      }
    }
  }
}

// Writes the accumulators as bf16 into shared memory, rows kStoreStride apart. The block must have finished
// reading the pipeline's stages; the tile may be read after the next __syncthreads(). `addend(row, column)`:
// the float2 that is added to this element of the tile and the next before rounding.
template <class Config, class Addend>
__device__ __forceinline__ void stage_accumulators(const Accumulators<Config>& acc, bf16* tile, int warp_m,
                                                   int warp_n, Addend addend) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const int column = warp_n * Config::kWN + j * 8 + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_m * Config::kWM + i * 16 + half * 8 + lane / 4;
        const float2 add = addend(row, column);
        *reinterpret_cast<__nv_bfloat162*>(tile + row * Config::kStoreStride + column) =
            __floats2bfloat162_rn(acc.v[i][j][2 * half] + add.x, acc.v[i][j][2 * half + 1] + add.y);
      }
    }
  }
}

// The gathered product that fwd and stride-1 dgrad have in common:
//
//   out[m, j] = addend + sum_{r,s,c} src[pixel(m) shifted by (r,s), c] * filter(j, r, s, c)
//
// fwd: src = x, j = k, shift (p*sh - ph + r, q*sw - pw + s), filter = w[j,r,s,c].
// dgrad: src = dy, j = input channel, shift (h + ph - r, w + pw - s), filter = w[c,r,s,j].
struct GatherShape {
  int rows;                // output pixels, N * out_h * out_w
  int out_h, out_w;        // output map
  int src_h, src_w;        // gathered map
  int src_c, src_stride;   // its channels, and channels from one pixel to the next
  int columns;             // output channels
  int r, s;                // filter
  int stride_h, stride_w;  // 1 for dgrad
  int pad_h, pad_w;
  bool accumulate;  // out +=
};

// The rows of the A tile that one thread copies: where their pixels start in src.
template <class Config>
struct GatherRows {
  static constexpr int kRows = Config::kBM * (Config::kBK / 8) / Config::kThreads;
  int image[kRows];        // first pixel of the image in src
  int h[kRows], w[kRows];  // position of tap (0,0); far outside for rows beyond the last
};

template <class Config, bool kDgrad>
__device__ __forceinline__ GatherRows<Config> gather_rows(const GatherShape& g, int first_row) {
  constexpr int kRowStep = Config::kThreads / (Config::kBK / 8);
  GatherRows<Config> rows;
#pragma unroll
  for (int i = 0; i < GatherRows<Config>::kRows; ++i) {
    const int m = first_row + threadIdx.x / (Config::kBK / 8) + i * kRowStep;
    const int image = m / (g.out_h * g.out_w), pixel = m % (g.out_h * g.out_w);
    const int p = pixel / g.out_w, q = pixel % g.out_w;
    rows.image[i] = m < g.rows ? image * g.src_h * g.src_w : 0;
    rows.h[i] = m < g.rows ? (kDgrad ? p + g.pad_h : p * g.stride_h - g.pad_h) : -(1 << 28);
    rows.w[i] = kDgrad ? q + g.pad_w : q * g.stride_w - g.pad_w;
  }
  return rows;
}

// Starts the copies of one stage: kBK channels from c0 of filter tap (r, s).
template <class Config, bool kDgrad>
__device__ __forceinline__ void gather_load_stage(const GatherShape& g, const GatherRows<Config>& rows,
                                                  const bf16* __restrict__ src,
                                                  const bf16* __restrict__ filter, uint32_t a_tile,
                                                  uint32_t b_tile, int first_column, int r, int s, int c0) {
  constexpr int kChunks = Config::kBK / 8, kRowStep = Config::kThreads / kChunks;
  const int chunk = threadIdx.x % kChunks, c = c0 + chunk * 8;
#pragma unroll
  for (int i = 0; i < GatherRows<Config>::kRows; ++i) {
    const int h = kDgrad ? rows.h[i] - r : rows.h[i] + r;
    const int w = kDgrad ? rows.w[i] - s : rows.w[i] + s;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(g.src_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.src_w) && c < g.src_c;
    const int offset = inside ? (rows.image[i] + h * g.src_w + w) * g.src_stride + c : 0;
    const int row = threadIdx.x / kChunks + i * kRowStep;
    cp_async16(a_tile + SwizzledTile<Config::kBK>::offset(row, chunk), src + offset, inside);
  }
  const int taps = g.r * g.s, tap = r * g.s + s;
  constexpr int kBChunks = Config::kBN * kChunks;
#pragma unroll
  for (int i = 0; i < (kBChunks + Config::kThreads - 1) / Config::kThreads; ++i) {
    const int index = threadIdx.x + i * Config::kThreads;
    if (kBChunks % Config::kThreads != 0 && index >= kBChunks) break;
    if constexpr (kDgrad) {  // [kBK][kBN]: rows are dy's channels
      constexpr int kRowChunks = Config::kBN / 8;
      const int row = index / kRowChunks, column = first_column + index % kRowChunks * 8;
      const bool inside = c0 + row < g.src_c && column < g.columns;
      const int offset = inside ? ((c0 + row) * taps + tap) * g.columns + column : 0;
      cp_async16(b_tile + SwizzledTile<Config::kBN>::offset(row, index % kRowChunks), filter + offset,
                 inside);
    } else {  // [kBN][kBK]: rows are output channels
      const int row = index / kChunks, column = first_column + row;
      const bool inside = column < g.columns && c < g.src_c;
      const int offset = inside ? (column * taps + tap) * g.src_c + c : 0;
      cp_async16(b_tile + SwizzledTile<Config::kBK>::offset(row, chunk), filter + offset, inside);
    }
  }
}

// A block owns kBM output pixels x kBN output channels; a warp kWM x kWN of them in registers. The K loop
// runs over taps and kBK-channel slices through kStages stages of shared memory (Config::kSmemBytes).
template <class Config, bool kDgrad>
__global__ __launch_bounds__(Config::kThreads, 2) void conv2d_gather_mma_sync_kernel(
    const bf16* __restrict__ src,     // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]
    const bf16* __restrict__ filter,  // w [K,R,S,C]
    const float* __restrict__ bias,   // [K] or null (fwd)
    bf16* __restrict__ out,           // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
    const __grid_constant__ GatherShape g) {
  extern __shared__ __align__(128) unsigned char smem[];
  const int column_tiles = (g.columns + Config::kBN - 1) / Config::kBN;
  const int first_row = blockIdx.x / column_tiles * Config::kBM;
  const int first_column = blockIdx.x % column_tiles * Config::kBN;
  const int warp_m = threadIdx.x / 32 / Config::kWarpsN, warp_n = threadIdx.x / 32 % Config::kWarpsN;
  const GatherRows<Config> rows = gather_rows<Config, kDgrad>(g, first_row);
  Accumulators<Config> acc = {};

  const int steps = g.r * g.s * ((g.src_c + Config::kBK - 1) / Config::kBK);
  int r = 0, s = 0, c0 = 0, loaded = 0;
  const auto load_next = [&] {
    if (loaded < steps) {
      const uint32_t a_tile = smem_address(smem) + loaded % Config::kStages * Config::kStageBytes;
      gather_load_stage<Config, kDgrad>(g, rows, src, filter, a_tile, a_tile + Config::kBM * Config::kBK * 2,
                                        first_column, r, s, c0);
      c0 += Config::kBK;
      if (c0 >= g.src_c) {
        c0 = 0;
        if (++s == g.s) s = 0, ++r;
      }
    }
    ++loaded;
    cp_async_commit();
  };
  for (int i = 0; i < Config::kStages - 1; ++i) load_next();
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Config::kStages - 2>();
    __syncthreads();  // the stage has arrived for all; the stage read in the step before may be overwritten
    load_next();
    const uint32_t a_tile = smem_address(smem) + step % Config::kStages * Config::kStageBytes;
    mma_stage<Config, false, kDgrad>(acc, a_tile, a_tile + Config::kBM * Config::kBK * 2, warp_m, warp_n);
  }
  cp_async_wait<0>();
  __syncthreads();  // all stages have been read

  bf16* tile = reinterpret_cast<bf16*>(smem);
  stage_accumulators<Config>(acc, tile, warp_m, warp_n, [&](int row, int column) {
    const int m = first_row + row, j = first_column + column;
    if (m >= g.rows || j >= g.columns) return make_float2(0.0f, 0.0f);
    if (bias) return make_float2(bias[j], bias[j + 1]);
    if (!g.accumulate) return make_float2(0.0f, 0.0f);
    const auto old = Vec<bf16, 2>::load(out + static_cast<size_t>(m) * g.columns + j);
    return make_float2(old[0], old[1]);
  });
  __syncthreads();
  constexpr int kRowChunks = Config::kBN / 8;
  for (int i = threadIdx.x; i < Config::kBM * kRowChunks; i += Config::kThreads) {
    const int row = i / kRowChunks, column = i % kRowChunks * 8;
    if (first_row + row < g.rows && first_column + column < g.columns) {
      Vec<bf16, 8>::load(tile + row * Config::kStoreStride + column)
          .store(out + static_cast<size_t>(first_row + row) * g.columns + first_column + column);
    }
  }
}

}  // namespace kiln
