// How the tma_rows kernels of depthwise_conv2d cut their work: a swept map (y for fwd, dy for wgrad, for
// dgrad at stride 2 pairs of rows and columns of dx) is walked down row by row, over rows of a source that
// the copy engine streams through shared memory. Nothing is read twice but the columns that two column tiles
// share and the first rows of a row tile.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/fast_divisor.cuh"
#include "kernels/common/impl.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {

constexpr int kTmaRowsMostStages = 8;
constexpr int kTmaRowsControlBytes = 16;  // of a stage: two barriers
constexpr int kTmaRowsFillBytes = 48;     // of a block, behind them: what to copy next

// What is walked, and what it costs.
struct TmaRowsSweep {
  int n, c;
  int height, width;        // the swept map
  int source_h, source_w;   // pixels of the source
  int step, window;         // source pixels from one swept pixel to the next, and under one, a side
  int origin_h, origin_w;   // source pixel where the window of swept pixel (0, 0) begins
  int columns, vector;      // of a thread: neighbouring swept columns, neighbouring channels
  int threads;              // of a block at most; two such blocks must fit a multiprocessor's registers
  int element_bytes;        // of the source
  bool loads_swept;         // the swept map is loaded too, and its rows beyond the source have slots (wgrad)
  double stored_pixels;     // for each swept one
  double row_slots;         // instructions of a warp for a row of the source
  int task_sum_floats = 0;  // shared memory that a thread needs once its tiles are done (wgrad)
};

// How a block's tasks lie. Everything the device needs.
struct TmaRowsShape {
  int n, height, width, c;  // of the swept map
  int source_h;
  int step, origin_h, origin_w;
  int channels, columns, rows, images;         // of a task
  int groups, strips;                          // a block is groups x strips x images threads
  int slices, column_tiles, row_tiles, walks;  // the grid is slices x column_tiles x (walks x row_tiles)
  FastDivisor row_tiles_divisor;               // by row_tiles
  int box_w, stage_rows, stages;               // of the source
  int stage_bytes, load_bytes;                 // stage_bytes is a multiple of 128
  int swept_at;                                // where the swept map's rows begin in a stage (wgrad)
  int control_at;                              // where the barriers begin, after the stages
};

struct TmaRowsPlan {
  TmaRowsShape shape;
  unsigned grid[3], block[3];
  size_t smem_bytes;
};

// The plan for a config "c<channels>_h<rows>_n<images>_k<rows of a stage>_s<stages>_b<blocks a
// multiprocessor>", or the one that a model of the kernel takes for the fastest for "". Throws Error for a
// config that is no tile of this sweep.
TmaRowsPlan plan_tma_rows(const TmaRowsSweep&, const Device&, std::string_view config);
// The cycles of a multiprocessor that this model gives the plan for "", to be held against tma_tile_cycles;
// infinitely many where there is no plan.
double tma_rows_cycles(const TmaRowsSweep&, const Device&);
// The configs that are worth a trial.
std::vector<std::string> tma_rows_configs(const TmaRowsSweep&, const Device&);

// fwd's sweep, and with dgrad's problem at stride 1 rewritten as a fwd (turned: w turned by 180 degrees).
Plan<DepthwiseConv2dFwd::Args> plan_tma_rows_correlation(const DepthwiseConv2dProblem&, bool turned,
                                                         const Device&, std::string_view config);
std::vector<std::string> tma_rows_correlation_configs(const DepthwiseConv2dProblem&, const Device&);
// tma_rows_cycles of that sweep.
double tma_rows_correlation_cycles(const DepthwiseConv2dProblem&, const Device&);

}  // namespace kiln
