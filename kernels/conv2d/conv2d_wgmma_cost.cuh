// Tiles and blocks of a gathered product, where its statistics go, and how long it is thought to take.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_wgmma_gather.cuh"

namespace kiln {

template <class Config>
WgmmaShape shape_for(WgmmaShape g) {
  g.row_tiles = ceil_div(g.rows, Config::kBM);
  g.column_tiles = ceil_div(g.columns, Config::kBN);
  g.steps = g.r * g.s * ceil_div(g.src_c, Config::kBK);
  return g;
}

// The most blocks of a launch with statistics, and the columns of the widest tiles: with moments
// (conv2d_stats.cuh), with sums (conv2d_column_sums.cuh).
inline int wgmma_stats_blocks(int multiprocessors) { return 2 * multiprocessors; }
constexpr int kWgmmaStatsColumns = 256, kWgmmaSumColumns = 128;
inline size_t wgmma_stats_bytes(int multiprocessors) {
  const size_t moments = sizeof(float2) * kWgmmaStatsColumns + 16, sums = sizeof(double2) * kWgmmaSumColumns;
  return std::max(moments, sums) * wgmma_stats_blocks(multiprocessors);
}

// Where the statistics of `slots` blocks a column tile go.
inline Conv2dStats wgmma_stats(const WgmmaGather& gather, const WgmmaBuffers& buffers, int slots) {
  if (!gather.stats) return {};
  auto* counts = static_cast<float*>(buffers.workspace);
  return {.partials = reinterpret_cast<float2*>(counts + 4 * wgmma_stats_blocks(gather.multiprocessors)),
          .counts = counts,
          .arrived = buffers.arrived,
          .mean = static_cast<float*>(buffers.mean),
          .var = static_cast<float*>(buffers.var),
          .slots = slots};
}

// Blocks that stay: one a multiprocessor, whole clusters, no more than there are tiles.
template <class Config>
unsigned wgmma_grid(const WgmmaShape& g, int multiprocessors) {
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  return Config::kCluster *
         static_cast<unsigned>(std::min<long long>(items, std::max(1, multiprocessors / Config::kCluster)));
}

// The same where each keeps to one column tile; 0 where there are too many of these. No clusters.
inline unsigned wgmma_stats_grid(const WgmmaShape& g, int multiprocessors) {
  return g.column_tiles * static_cast<unsigned>(std::min(g.row_tiles, multiprocessors / g.column_tiles));
}
inline bool wgmma_takes_stats(const WgmmaShape& g, int multiprocessors) {
  return wgmma_stats_grid(g, multiprocessors) > 0;
}

// The grid of a launch of `g`, whose tiles are Config's.
template <class Config>
unsigned wgmma_launch_grid(const WgmmaGather& gather, const WgmmaShape& g) {
  return gather.stats ? wgmma_stats_grid(g, gather.multiprocessors)
                      : wgmma_grid<Config>(g, gather.multiprocessors);
}

// Clocks that a tile of `steps` stages is thought to take: as long as its products or its reads of L2, and
// its stores. Only ratios matter; the constants are the H100's (4096 FLOP, about 38 bytes of L2 a clock and
// multiprocessor; narrow products run below the full rate). `read_bytes`: over all steps.
template <class Config>
double wgmma_tile_cost(int steps, double read_bytes) {
  constexpr double kRate = Config::kBN >= 256   ? 1.0
                           : Config::kBN >= 128 ? 0.92
                           : Config::kBN >= 64  ? 0.85
                                                : 0.6;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  constexpr double kStores = 600 + 2.0 * Config::kBM * Config::kBN / 38;
  return std::max(steps * kProducts, read_bytes / 38) + kStores;
}

// Clocks of a launch: waves of tiles. `read_bytes`: a tile's.
template <class Config>
double wgmma_launch_cost(const WgmmaShape& g, double read_bytes, int multiprocessors) {
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  const long long clusters = wgmma_grid<Config>(g, multiprocessors) / Config::kCluster;
  return static_cast<double>(ceil_div(items, clusters)) * wgmma_tile_cost<Config>(g.steps, read_bytes);
}

// Bytes of L2 a clock and multiprocessor: of data that neighbours ask for at the same time, and of their own.
constexpr double kWgmmaSharedBytes = 79, kWgmmaOwnBytes = 31.5;

// Clocks of one stage, by the times of the tile shapes on an H100: products at a share of the full rate, or
// the copies. Column tiles are neighbours and read the same source.
template <class Config>
double wgmma_stage_clocks(int column_tiles) {
  constexpr double kRate = Config::kBN >= 256 ? 0.98 : Config::kBN >= 64 ? 0.92 : 0.57;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  const double source = Config::kABytes / kWgmmaOwnBytes * (0.31 + 0.69 / column_tiles);
  return std::max({kProducts, source, Config::kStageBytes / kWgmmaSharedBytes});
}

// Clocks of a gathered launch: waves of tiles, whose pixels the copy engine walks at 1.8 clocks each.
template <class Config>
double wgmma_cost(const WgmmaGather& gather) {
  const WgmmaShape g = shape_for<Config>(gather.shape);
  if (gather.stats && !(Config::kStats && wgmma_takes_stats(g, gather.multiprocessors))) {
    return std::numeric_limits<double>::infinity();
  }
  const double step = std::max(1.8 * Config::kBM, wgmma_stage_clocks<Config>(g.column_tiles));
  constexpr double kStores = 260 + 0.12 * Config::kBM * Config::kBN;
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  const long long clusters = wgmma_grid<Config>(g, gather.multiprocessors) / Config::kCluster;
  return static_cast<double>(ceil_div(items, clusters)) * (g.steps * step + kStores);
}

// The least of the automatic tile shapes.
inline double wgmma_least_cost(const WgmmaGather& gather) {
  return std::min(
      {wgmma_cost<WgmmaConfig<128, 256, 64, 4>>(gather), wgmma_cost<WgmmaConfig<256, 128, 64, 4>>(gather),
       wgmma_cost<WgmmaConfig<128, 128, 64, 6>>(gather), wgmma_cost<WgmmaConfig<256, 64, 64, 5>>(gather),
       wgmma_cost<WgmmaConfig<256, 32, 64, 5>>(gather), wgmma_cost<WgmmaConfig<256, 128, 32, 8>>(gather),
       wgmma_cost<WgmmaConfig<256, 64, 32, 8>>(gather), wgmma_cost<WgmmaConfig<256, 32, 32, 8>>(gather)});
}

// What y's moments from shared memory (conv2d_stats.cuh), which nothing hides, make of a time.
inline double with_moments(const WgmmaGather& gather, double time) {
  return gather.stats ? 1.25 * time : time;
}

// Bytes of device memory that a gathered product moves, each once; a filter of one tap passes over the
// source's pixels between its strides. `line`: rows are moved as whole lines of so many bytes.
inline double wgmma_bytes(const WgmmaGather& gather, int line = 2) {
  const WgmmaShape& g = gather.shape;
  const double source_rows =
      std::min(1.0 * gather.src.n * gather.src.h * gather.src.w, 1.0 * g.rows * g.r * g.s);
  return source_rows * ceil_div(2 * g.src_c, line) * line +
         1.0 * g.rows * ceil_div(2 * g.columns, line) * line;
}

// Clocks from start to end of a launch, by which implementations are compared, in the measure of
// pointwise_cost: the start, and the work of the busiest block and the time of device memory (1500 bytes a
// clock), which hide some of each other. This and what uses it are fitted to an H100's times of the 1x1 and
// 3x3 products of networks at batches of 128, 512 and 2000.
inline double launch_clocks(double start, double work, double bytes) {
  return start + std::hypot(work, bytes / 1500);
}

// The same of the strided dgrad by classes of pixels, in conv2d_dgrad_wgmma_parity.cu.
double parity_launch_clocks(const Conv2dProblem& p, const Device& device);

// The same of a gathered product, of what wgmma_cost or a cost in its measure says, whose clocks are shorter:
// most of all with one tap, whose short tiles overlap.
inline double gathered_launch_clocks(const WgmmaGather& gather, double cost) {
  const double clocks = gather.shape.r * gather.shape.s == 1 ? 0.77 : 0.92;
  return launch_clocks(2400, clocks * cost, wgmma_bytes(gather));
}

}  // namespace kiln
