// What the mma.sync convolutions share: the warp's product of two shared-memory tiles and the staged store of
// the accumulators.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

// Operands T (bf16, or fp32 that is multiplied as tf32), kBM x kBN outputs a block, kWarpsM x kWarpsN warps,
// kBK products a stage, kStages stages in flight.
template <class T_, int kBM_, int kBN_, int kWarpsM_, int kWarpsN_, int kStages_ = 4>
struct MmaConfig {
  using T = T_;
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kBK = 64 / sizeof(T), kStages = kStages_;
  static constexpr int kV = kVec16<T>;   // elements of a copy
  static constexpr int kStepK = 2 * kV;  // k of one matrix instruction
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kWM = kBM / kWarpsM, kWN = kBN / kWarpsN;  // a warp's tile
  static constexpr int kMT = kWM / 16, kNT = kWN / 8;             // in m16n8 products
  static constexpr int kATileBytes = kBM * kBK * sizeof(T);
  static constexpr int kStageBytes = (kBM + kBN) * kBK * sizeof(T);
  static constexpr int kStoreStride = kBN + 8;  // elements; the padding spreads rows over banks
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static constexpr int kStoreBytes = kBM * kStoreStride * sizeof(T);
  static constexpr int kSmemBytes = kPipelineBytes > kStoreBytes ? kPipelineBytes : kStoreBytes;
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "operands are bf16 or fp32");
  static_assert(kWM % 16 == 0 && kWN % 16 == 0, "a warp's tile is whole ldmatrix.x4 loads");
  static_assert(kBK % kStepK == 0, "a stage is whole steps of the matrix instruction");
};

// An operand's tile in shared memory: [kSpan][kBK], or with kTransposed [kBK][kSpan].
template <class Config, bool kTransposed, int kSpan>
struct OperandTileOf {
  using Type = SwizzledTile<(kTransposed ? kSpan : Config::kBK) * sizeof(typename Config::T) / 2>;
};
template <class Config, int kSpan>
requires(sizeof(typename Config::T) == 4) struct OperandTileOf<Config, true, kSpan> {
  using Type = ColumnReadTile<kSpan>;
};
template <class Config, bool kTransposed, int kSpan>
using OperandTile = typename OperandTileOf<Config, kTransposed, kSpan>::Type;

template <class Config>
struct Accumulators {
  float v[Config::kMT][Config::kNT][4];
};

// Fills d with the four registers of 16 x kStepK elements, from row `first` of the operand and step `step`.
// kRowsFirst: the register after the first is that of the next eight rows (A), else of the next k (B).
template <class Config, bool kTransposed, int kSpan, bool kRowsFirst>
__device__ __forceinline__ void load_fragments(uint32_t (&d)[4], uint32_t tile, int first, int step) {
  using Tile = OperandTile<Config, kTransposed, kSpan>;
  const int lane = threadIdx.x % 32;
  if constexpr (kTransposed && sizeof(typename Config::T) == 4) {
    const int row = lane % 4;  // of eight k; ColumnReadTile repeats itself every four
    const uint32_t step_tile = tile + (step * Config::kStepK) * Tile::kRowBytes + lane / 4 % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int eight = kRowsFirst ? i % 2 : i / 2, next_k = kRowsFirst ? i / 2 : i % 2;
      d[i] = load_shared(step_tile + next_k * 4 * Tile::kRowBytes +
                         Tile::offset(row, first / 4 + eight * 2 + lane / 16));
    }
  } else {
    const int row8 = lane % 8, low = lane / 8 % 2, high = lane / 16;
    const int eight = kRowsFirst ? low : high, next_k = kRowsFirst ? high : low;
    const uint32_t offset = kTransposed
                                ? Tile::offset(step * Config::kStepK + row8 + next_k * 8, first / 8 + eight)
                                : Tile::offset(first + row8 + eight * 8, step * 2 + next_k);
    ldmatrix_x4<kTransposed>(d, tile + offset);
  }
  if constexpr (sizeof(typename Config::T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = round_to_tf32(d[i]);
  }
}

// acc += A * B for one stage. A is [kBM][kBK], or with kATransposed [kBK][kBM]; B is [kBN][kBK], or with
// kBTransposed [kBK][kBN]; both as OperandTile. May be called once the stage's copies are visible to the
// block.
template <class Config, bool kATransposed, bool kBTransposed>
__device__ __forceinline__ void mma_stage(Accumulators<Config>& acc, uint32_t a_tile, uint32_t b_tile,
                                          int warp_m, int warp_n) {
#pragma unroll
  for (int step = 0; step < Config::kBK / Config::kStepK; ++step) {
    uint32_t a[Config::kMT][4], b[Config::kNT / 2][4];
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
      load_fragments<Config, kATransposed, Config::kBM, true>(a[i], a_tile, warp_m * Config::kWM + i * 16,
                                                              step);
    }
#pragma unroll
    for (int j = 0; j < Config::kNT / 2; ++j) {
      load_fragments<Config, kBTransposed, Config::kBN, false>(b[j], b_tile, warp_n * Config::kWN + j * 16,
                                                               step);
    }
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kNT; ++j) {
        const uint32_t b0 = b[j / 2][2 * (j % 2)], b1 = b[j / 2][2 * (j % 2) + 1];
        if constexpr (sizeof(typename Config::T) == 4) {
          mma_tf32(acc.v[i][j], a[i], b0, b1);
        } else {
          mma_bf16(acc.v[i][j], a[i], b0, b1);
        }
      }
    }
  }
}

// Writes the accumulators as T into shared memory, rows kStoreStride apart. The block must have finished
// reading the pipeline's stages; the tile may be read after the next __syncthreads(). `finish(row, column,
// sums)`: what is rounded for the sums of this element of the tile and the next.
template <class Config, class Finish>
__device__ __forceinline__ void stage_accumulators(const Accumulators<Config>& acc, typename Config::T* tile,
                                                   int warp_m, int warp_n, Finish finish) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const int column = warp_n * Config::kWN + j * 8 + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_m * Config::kWM + i * 16 + half * 8 + lane / 4;
        const float2 sums =
            finish(row, column, make_float2(acc.v[i][j][2 * half], acc.v[i][j][2 * half + 1]));
        Vec<typename Config::T, 2> sum;
        sum.set(0, sums.x);
        sum.set(1, sums.y);
        sum.store(tile + row * Config::kStoreStride + column);
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
  bool accumulate;          // out +=
  const void* x = nullptr;  // dgrad with drelu or drelu6: [N,H,W,C], else null
  Conv2dGate gate = {};
  Conv2dEpilogue epilogue = {};  // of the fused kernel
};

// The rows of the A tile that one thread copies: where their pixels start in src.
template <class Config>
struct GatherRows {
  static constexpr int kChunks = Config::kBK / Config::kV;  // copies of a row
  static constexpr int kRows = Config::kBM * kChunks / Config::kThreads, kStep = Config::kThreads / kChunks;
  int image[kRows];        // first pixel of the image in src
  int h[kRows], w[kRows];  // position of tap (0,0); far outside for rows beyond the last
};

template <class Config, bool kDgrad>
__device__ __forceinline__ GatherRows<Config> gather_rows(const GatherShape& g, int first_row) {
  using Rows = GatherRows<Config>;
  Rows rows;
#pragma unroll
  for (int i = 0; i < Rows::kRows; ++i) {
    const int m = first_row + threadIdx.x / Rows::kChunks + i * Rows::kStep;
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
                                                  const typename Config::T* __restrict__ src,
                                                  const typename Config::T* __restrict__ filter,
                                                  uint32_t a_tile, uint32_t b_tile, int first_column, int r,
                                                  int s, int c0) {
  using Rows = GatherRows<Config>;
  using ATile = OperandTile<Config, false, Config::kBM>;
  using BTile = OperandTile<Config, kDgrad, Config::kBN>;
  constexpr int kChunks = Rows::kChunks;
  const int chunk = threadIdx.x % kChunks, c = c0 + chunk * Config::kV;
#pragma unroll
  for (int i = 0; i < Rows::kRows; ++i) {
    const int h = kDgrad ? rows.h[i] - r : rows.h[i] + r;
    const int w = kDgrad ? rows.w[i] - s : rows.w[i] + s;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(g.src_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.src_w) && c < g.src_c;
    const int offset = inside ? (rows.image[i] + h * g.src_w + w) * g.src_stride + c : 0;
    const int row = threadIdx.x / kChunks + i * Rows::kStep;
    cp_async16(a_tile + ATile::offset(row, chunk), src + offset, inside);
  }
  const int taps = g.r * g.s, tap = r * g.s + s;
  constexpr int kBChunks = Config::kBN * kChunks;
#pragma unroll
  for (int i = 0; i < (kBChunks + Config::kThreads - 1) / Config::kThreads; ++i) {
    const int index = threadIdx.x + i * Config::kThreads;
    if (kBChunks % Config::kThreads != 0 && index >= kBChunks) break;
    if constexpr (kDgrad) {  // [kBK][kBN]: rows are dy's channels
      constexpr int kRowChunks = Config::kBN / Config::kV;
      const int row = index / kRowChunks, column = first_column + index % kRowChunks * Config::kV;
      const bool inside = c0 + row < g.src_c && column < g.columns;
      const int offset = inside ? ((c0 + row) * taps + tap) * g.columns + column : 0;
      cp_async16(b_tile + BTile::offset(row, index % kRowChunks), filter + offset, inside);
    } else {  // [kBN][kBK]: rows are output channels
      const int row = index / kChunks, column = first_column + row;
      const bool inside = column < g.columns && c < g.src_c;
      const int offset = inside ? (column * taps + tap) * g.src_c + c : 0;
      cp_async16(b_tile + BTile::offset(row, chunk), filter + offset, inside);
    }
  }
}

// A block owns kBM output pixels x kBN output channels; a warp kWM x kWN of them in registers. The K loop
// runs over taps and kBK-channel slices through kStages stages of shared memory (Config::kSmemBytes).
template <class Config, bool kDgrad, bool kFused, class T = typename Config::T>
__global__ __launch_bounds__(Config::kThreads, 2) void conv2d_gather_mma_sync_kernel(
    const T* __restrict__ src,       // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]
    const T* __restrict__ filter,    // w [K,R,S,C]
    const float* __restrict__ bias,  // [K] or null (fwd)
    T* __restrict__ out,             // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
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
      gather_load_stage<Config, kDgrad>(g, rows, src, filter, a_tile, a_tile + Config::kATileBytes,
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
    mma_stage<Config, false, kDgrad>(acc, a_tile, a_tile + Config::kATileBytes, warp_m, warp_n);
  }
  cp_async_wait<0>();
  __syncthreads();  // all stages have been read

  T* tile = reinterpret_cast<T*>(smem);
  stage_accumulators<Config>(acc, tile, warp_m, warp_n, [&](int row, int column, float2 sums) {
    const int m = first_row + row, j = first_column + column;
    if (m >= g.rows || j >= g.columns) return sums;
    const size_t at = static_cast<size_t>(m) * g.columns + j;
    if constexpr (kFused) {
      const Conv2dEpilogue& e = g.epilogue;
      Vec<T, 2> joined{};
      if (e.residual) joined = Vec<T, 2>::load(static_cast<const T*>(e.residual) + at);
      const float2 scale = e.scale_pair(j), shift = e.bias_pair(j);
      return make_float2(e.finish(sums.x, scale.x, shift.x, joined[0]),
                         e.finish(sums.y, scale.y, shift.y, joined[1]));
    }
    float2 add = make_float2(0.0f, 0.0f);
    if (kDgrad && g.x) {
      const auto x = Vec<T, 2>::load(static_cast<const T*>(g.x) + at);
      return make_float2(g.gate.passes(x[0]) ? sums.x : 0.0f, g.gate.passes(x[1]) ? sums.y : 0.0f);
    }
    if (bias) {
      add = make_float2(bias[j], bias[j + 1]);
    } else if (g.accumulate) {
      const auto old = Vec<T, 2>::load(out + at);
      add = make_float2(old[0], old[1]);
    }
    return make_float2(sums.x + add.x, sums.y + add.y);
  });
  __syncthreads();
  constexpr int kRowChunks = Config::kBN / Config::kV;
  for (int i = threadIdx.x; i < Config::kBM * kRowChunks; i += Config::kThreads) {
    const int row = i / kRowChunks, column = i % kRowChunks * Config::kV;
    if (first_row + row < g.rows && first_column + column < g.columns) {
      Vec<T, Config::kV>::load(tile + row * Config::kStoreStride + column)
          .store(out + static_cast<size_t>(first_row + row) * g.columns + first_column + column);
    }
  }
}

// The types and channels that the passes take: copies of 16 bytes lie within one tap.
inline Support mma_sync_takes(const Conv2dProblem& p) {
  if (p.dtype != DType::kBF16 && p.dtype != DType::kTF32) return Support::no("dtype must be bf16 or tf32");
  const int v = p.dtype == DType::kBF16 ? kVec16<bf16> : kVec16<float>;
  if (p.c % v || p.k % v || p.x_channels() % v) {
    return Support::no("channels and their stride must be multiples of 8 (tf32: 4)");
  }
  return Support::yes();
}

// plan(T{}) with the operands' type: fp32 for tf32.
template <class Plan>
auto mma_sync_with_type(DType dtype, Plan plan) {
  return dtype == DType::kBF16 ? plan(bf16()) : plan(float());
}

}  // namespace kiln
