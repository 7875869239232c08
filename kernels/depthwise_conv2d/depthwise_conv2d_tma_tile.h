// How the tma_tile kernels of depthwise_conv2d cut their work: a map of pixels (y for fwd, dy for wgrad,
// cells of dx for dgrad at stride 2) is swept tile by tile; what a tile reads of the source is a box that the
// copy engine brings into shared memory, padding included, as zeros.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/impl.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {

constexpr int kTmaTileThreads = 256;  // of a block
constexpr int kTmaTileMostStages = 8;
constexpr int kTmaTileControlBytes = 32;  // of a stage: two barriers, a counter

// What is swept, and what its pixels cost.
struct TmaSweep {
  int n, height, width, c;  // the swept map, its channels
  int source_h, source_w;   // pixels of the source
  int step, window;         // source pixels from one swept pixel to the next, and under one, a side
  int origin_h, origin_w;   // source pixel where the window of swept pixel (0, 0) begins
  int columns;              // neighbouring swept pixels of a thread
  int blocks;               // that a multiprocessor can hold
  int element_bytes;        // of the source
  bool loads_swept;         // the swept map is loaded too (wgrad)
  double stored_pixels;     // for each swept one
  double pixel_slots;       // instructions of a warp for a swept pixel
  double window_slots;      // for a window's row brought into registers
  int least_smem = 0;       // bytes a block needs once its tiles are done
};

// How the tiles lie. Everything the device needs.
struct TmaTileShape {
  int n, height, width, c;
  int channels, columns, rows, images;  // of a tile; columns are whole strips
  int slices, column_tiles, row_tiles;  // of the channels, of an image
  int tiles, blocks;                    // of a slice
  int step, origin_h, origin_w, box_h, box_w;
  int pairs, strips, groups, group_rows;  // of a tile: pairs x strips x groups x images threads have work
  int stages, stage_bytes, load_bytes;    // stage_bytes is a multiple of 128
  int swept_at;                           // where the swept map's tile begins in a stage (wgrad)
  int control_at;                         // where barriers and counters begin, after the stages
};

struct TmaTilePlan {
  TmaTileShape shape;
  unsigned grid;
  size_t smem_bytes;
};

// The plan for a config "c<channels>_h<rows>_n<images>_s<stages>", or the one that a model of the kernel
// takes for the fastest for "". Throws Error for a config that is no tile of this sweep.
TmaTilePlan plan_tma_tile(const TmaSweep&, const Device&, std::string_view config);
// The cycles of a multiprocessor that this model gives the plan for "", to be held against tma_rows_cycles;
// infinitely many where there is no plan.
double tma_tile_cycles(const TmaSweep&, const Device&);
// The configs that are worth a trial.
std::vector<std::string> tma_tile_configs(const TmaSweep&, const Device&);

Support tma_tile_supports(const DepthwiseConv2dProblem&, const Device&);
// Whether one of both is ahead of sliding_window in dgrad. At stride 2 dx is most of the bytes, and
// sliding_window writes larger images in better order where pixels are no whole lines of memory.
bool tma_dgrad_preferred(const DepthwiseConv2dProblem&);

// fwd's sweep, and with dgrad's problem at stride 1 rewritten as a fwd (turned: w turned by 180 degrees).
Plan<DepthwiseConv2dFwd::Args> plan_tma_tile_correlation(const DepthwiseConv2dProblem&, bool turned,
                                                         const Device&, std::string_view config);
std::vector<std::string> tma_tile_correlation_configs(const DepthwiseConv2dProblem&, const Device&);

// tma_tile_cycles of the sweeps of fwd (and dgrad at stride 1, see above), dgrad at stride 2 and wgrad.
double tma_tile_correlation_cycles(const DepthwiseConv2dProblem&, const Device&);
double tma_tile_dgrad_cycles(const DepthwiseConv2dProblem&, const Device&);
double tma_tile_wgrad_cycles(const DepthwiseConv2dProblem&, const Device&);

}  // namespace kiln
