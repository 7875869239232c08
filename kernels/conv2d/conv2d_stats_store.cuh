// Stores of wgmma accumulators that also take y's statistics (conv2d_stats.cuh): a warp's 16 rows x
// kColumnSpan columns are rounded into its own staging tile, counted there and stored from there as 16-byte
// chunks.
#pragma once

#include "kernels/conv2d/conv2d_wgmma_store.cuh"

namespace kiln {

// The statistics of a warp with tiles of Config.
template <class Config>
using TileStats = WarpStats<Config::kBN, (Config::kBN <= 64 ? Config::kBN : Config::kColumnSpan)>;

// As store_slice(), of sum + bias. Bit i of `pixels`: row i is one; others count as nothing. `held`:
// where the columns are in `stats`.
template <int kColumnSpan, class Stats, class Global>
__device__ __forceinline__ void store_counted_slice(const float* acc, unsigned char* staging,
                                                    int first_column, int columns, const Conv2dEpilogue& e,
                                                    unsigned pixels, Stats& stats, int held,
                                                    const Global& global) {
  using Tile = SwizzledTile<kColumnSpan>;
  constexpr int kChunks = kColumnSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = computed_again(threadIdx.x % 32);
  const uint32_t matrices = smem_address(staging);
  const int first = computed_again(first_column + 2 * (lane % 4));
  const bool real[2] = {(pixels >> lane / 4 & 1) != 0, (pixels >> (lane / 4 + 8) & 1) != 0};
#pragma unroll
  for (int j = 0; j < kChunks; j += 2) {  // as store_slice() writes them
    uint32_t results[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = j + i / 2, column = first + chunk * 8;
      const float2 bias = e.bias_pair(column < columns ? column : 0);
      const float* v = &acc[4 * chunk + i % 2 * 2];
      const __nv_bfloat162 sum = __floats2bfloat162_rn(v[0] + bias.x, v[1] + bias.y);
      results[i] = real[i % 2] ? *reinterpret_cast<const uint32_t*>(&sum) : 0;
    }
    stmatrix_x4(matrices + Tile::offset(lane % 16, j + lane / 16), results);
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kChunks; j += 2) {
    stats.add(held + j * 8, matrices + Tile::offset(lane % 16, j + lane / 16));
  }
#pragma unroll
  for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
    const uint32_t at = Tile::offset(i * kRowsAtOnce + lane / kChunks, lane % kChunks);
    if (bf16* to = global(i)) Vec<bf16, 8>::load(reinterpret_cast<const bf16*>(staging + at)).store(to);
  }
  __syncwarp();  // read by the warp: the next slice may overwrite it
}

// A tile as that of for_row_slices().
template <class Config>
__device__ __forceinline__ void store_counted_tile(const float (&acc)[Config::kMTiles][Config::kBN / 2],
                                                   unsigned char* store, int warp, int first_row,
                                                   int first_column, int rows, int columns, bf16* y,
                                                   const Conv2dEpilogue& e, TileStats<Config>& stats) {
  constexpr bool kKept = TileStats<Config>::kKept;
  constexpr int kSpan = Config::kColumnSpan, kChunks = kSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32, warp_row = first_row + warp % 4 * 16;
  unsigned char* staging = store + warp * 16 * kSpan * 2;
  int counted = 0;
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) counted += min(max(rows - warp_row - i * 64, 0), 16);
#pragma unroll
  for (int span = 0; span < Config::kBN; span += kSpan) {
    const int chunk = first_column + span + lane % kChunks * 8;
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      const int top = warp_row + i * 64;
      const auto global = [&](int turn) -> bf16* {
        const int row = top + lane / kChunks + turn * kRowsAtOnce;
        return row < rows && chunk < columns ? y + static_cast<size_t>(row) * columns + chunk : nullptr;
      };
      store_counted_slice<kSpan>(acc[i] + span / 2, staging, first_column + span, columns, e,
                                 (1u << min(max(rows - top, 0), 16)) - 1, stats, kKept ? span : 0, global);
    }
    if constexpr (!kKept) stats.fold(span, static_cast<float>(counted));
  }
  if constexpr (kKept) {
    stats.added(counted, 16 * Config::kMTiles);
  } else {
    stats.count += static_cast<float>(counted);
  }
}

}  // namespace kiln
