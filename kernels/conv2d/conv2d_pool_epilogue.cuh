// The epilogue of conv2d fwd with max2, through shared memory: what is stored are the maxima of 2x2 windows
// of act(scale[k] * sum + bias[k]) as rounded to bf16, and with arg2 their positions.
//
// A warpgroup stages 64 pixels x kColumnSpan columns at a time. Where maps are 8, 16 or 32 pixels wide and
// their pixels a multiple of 64, these are an even number of map rows of one image, from an even one on: 16
// windows, which are 16 pixels of y in a row. A thread has 8 columns of one: four reads of 16 bytes, one
// write of 16 bytes, and 2 bytes of positions.
#pragma once

#include "kernels/conv2d/conv2d_epilogue.cuh"

namespace kiln {

// Whether the windows of a map lie within 64 pixels as above.
inline bool conv2d_pools_by_64(int out_h, int out_w) {
  return (out_w == 8 || out_w == 16 || out_w == 32) && out_h * 1LL * out_w % 64 == 0;
}

// The named barriers of the two consumer warpgroups.
__device__ __forceinline__ void pooled_sync(int group) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(group + 1) : "memory");
}

// Rounds a warp's 16 rows x kColumnSpan columns, wgmma accumulators of `first_column` on, into its part of
// the staging tile. K and the columns are multiples of 8.
template <int kColumnSpan>
__device__ __forceinline__ void stage_for_pool(const float* acc, unsigned char* staging, int first_column,
                                               int columns, const Conv2dEpilogue& e) {
  using Tile = SwizzledTile<kColumnSpan>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kColumnSpan / 8; ++j) {
    const int column = first_column + j * 8 + 2 * (lane % 4), real = column < columns ? column : 0;
    const float2 scale = e.scale_pair(real), bias = e.bias_pair(real);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* pair =
          reinterpret_cast<__nv_bfloat162*>(staging + Tile::offset(lane / 4 + 8 * half, j)) + lane % 4;
      *pair = __floats2bfloat162_rn(e.finish(acc[4 * j + 2 * half], scale.x, bias.x, 0.0f),
                                    e.finish(acc[4 * j + 2 * half + 1], scale.y, bias.y, 0.0f));
    }
  }
}

// The 16 windows of 64 staged pixels, the first of which is pixel `first` of all; columns from `first_column`
// on.
template <int kColumnSpan>
__device__ __forceinline__ void store_maxima(const unsigned char* staging, int first, int first_column,
                                             int columns, int map_w,
                                             bf16* y,         // [N,P/2,Q/2,K]
                                             uint8_t* arg) {  // [N,P/2,Q/2,K/4] or null
  using Tile = SwizzledTile<kColumnSpan>;
  constexpr int kChunks = kColumnSpan / 8;
  const int window = threadIdx.x % 128 / kChunks, chunk = threadIdx.x % kChunks;
  const int column = first_column + chunk * 8;
  if (window >= 16 || column >= columns) return;
  const int half_w = map_w / 2, in_row = window & (half_w - 1);  // widths are powers of two
  const int top_left =
      4 * (window - in_row) + 2 * in_row;  // its first pixel: 2 * (window / half_w) rows down
  const auto tap = [&](int pixel) {
    return Vec<bf16, 8>::load(reinterpret_cast<const bf16*>(staging + Tile::offset(pixel, chunk)));
  };
  Vec<bf16, 8> best = tap(top_left);
  unsigned positions = 0;  // channel column + j in bits 2j
#pragma unroll
  for (int at = 1; at < 4; ++at) {
    const Vec<bf16, 8> next = tap(top_left + at / 2 * map_w + at % 2);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const bool better = static_cast<int>(next[j] > best[j]) | static_cast<int>(next[j] != next[j]);
      best.v[j] = better ? next.v[j] : best.v[j];
      positions = better ? (positions & ~(3u << 2 * j)) | static_cast<unsigned>(at) << 2 * j : positions;
    }
  }
  const size_t pixel = static_cast<size_t>(first) / 4 + window;
  best.store(y + pixel * columns + column);
  if (arg) {  // two bytes, aligned: columns are multiples of 8
    *reinterpret_cast<uint16_t*>(arg + pixel * (columns / 4) + column / 4) = static_cast<uint16_t>(positions);
  }
}

// A warpgroup's accumulators: kMTiles x 64 pixels from `first_row` of the unpooled map on, kBN columns.
template <class Config>
__device__ __forceinline__ void store_pooled_tile(const float (&acc)[Config::kMTiles][Config::kBN / 2],
                                                  unsigned char* store, int warp, int first_row,
                                                  int first_column, int rows, int columns, int map_w, bf16* y,
                                                  uint8_t* arg, const Conv2dEpilogue& e) {
  constexpr int kSpan = Config::kColumnSpan, kWarpBytes = 16 * kSpan * 2;
  unsigned char* staging = store + warp / 4 * 4 * kWarpBytes;
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
#pragma unroll
    for (int span = 0; span < Config::kBN; span += kSpan) {
      stage_for_pool<kSpan>(acc[i] + span / 2, staging + warp % 4 * kWarpBytes, first_column + span, columns,
                            e);
      pooled_sync(warp / 4);  // 64 pixels are staged
      if (first_row + i * 64 < rows) {
        store_maxima<kSpan>(staging, first_row + i * 64, first_column + span, columns, map_w, y, arg);
      }
      pooled_sync(warp / 4);  // and read: the next may overwrite them
    }
  }
}

}  // namespace kiln
