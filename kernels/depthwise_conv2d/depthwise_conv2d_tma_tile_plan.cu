// Host side of the tma_tile kernels of depthwise_conv2d: which tiles there are, which one to take.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/common/error.h"
#include "kernels/common/grid.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.h"

namespace kiln {
namespace {

struct Choice {
  int channels = 0, rows = 0, images = 0, stages = 0;
};
constexpr TmaConfigField<Choice> kFields[] = {
    {"c", &Choice::channels}, {"_h", &Choice::rows}, {"_n", &Choice::images}, {"_s", &Choice::stages}};

size_t smem_of(const TmaTileShape& g) {
  return kTmaAlignment + static_cast<size_t>(g.control_at) + g.stages * kTmaTileControlBytes;
}

// The tiles of a choice; tiles = 0 where there are none.
TmaTileShape shape_of(const Choice& choice, const TmaSweep& s, const Device& device) {
  TmaTileShape g = {};
  const int unit = 16 / s.element_bytes;
  if (choice.channels < unit || choice.channels % unit || choice.channels > kTmaMostBox) return g;
  if (choice.stages < 2 || choice.stages > kTmaTileMostStages) return g;
  if (choice.rows < 1 || choice.rows > s.height || choice.images < 1 || choice.images > kTmaMostBox) return g;
  g.n = s.n;
  g.height = s.height;
  g.width = s.width;
  g.c = s.c;
  g.channels = choice.channels;
  g.rows = choice.rows;
  g.images = choice.images;
  g.stages = choice.stages;
  g.step = s.step;
  g.origin_h = s.origin_h;
  g.origin_w = s.origin_w;
  g.slices = ceil_div(s.c, g.channels);
  g.pairs = g.channels / 2;
  // Whole rows of the map, unless they are too wide for a box or for the threads of a pair.
  const int lanes = kTmaTileThreads / g.pairs, strips = ceil_div(s.width, s.columns);
  const int widest = std::min(lanes / g.images, ((kTmaMostBox - s.window) / s.step + 1) / s.columns);
  if (widest < 1) return g;
  g.column_tiles = ceil_div(strips, widest);
  g.strips = ceil_div(strips, g.column_tiles);
  g.columns = g.strips * s.columns;
  constexpr int kLeastRows = 4;  // of a group: each reads the rows of its first window
  const int groups = std::min(lanes / (g.strips * g.images), ceil_div(g.rows, kLeastRows));
  g.group_rows = ceil_div(g.rows, groups);
  g.groups = ceil_div(g.rows, g.group_rows);
  g.row_tiles = ceil_div(s.height, g.rows);
  g.box_w = (g.columns - 1) * s.step + s.window;
  g.box_h = (g.rows - 1) * s.step + s.window;
  if (g.box_h > kTmaMostBox || (g.images > 1 && (g.row_tiles > 1 || g.column_tiles > 1))) return g;
  const long long pixel = 1LL * g.images * g.channels * s.element_bytes;
  const long long source = pixel * g.box_w * g.box_h, swept = s.loads_swept ? pixel * g.columns * g.rows : 0;
  if (source + swept > kTmaMostSmem) return g;  // a barrier counts up to 2^20 - 1 bytes
  g.load_bytes = static_cast<int>(source + swept);
  g.swept_at = round_up(static_cast<int>(source), kTmaAlignment);
  g.stage_bytes = g.swept_at + round_up(static_cast<int>(swept), kTmaAlignment);
  g.control_at = std::max(g.stages * g.stage_bytes, round_up(s.least_smem, kTmaAlignment));
  const int tiles = g.column_tiles * g.row_tiles * ceil_div(s.n, g.images);
  g.blocks = std::min(tiles, std::max(1, device.multiprocessors * s.blocks / g.slices));
  g.tiles = tiles;
  return g;
}

// Bytes of a block where s.blocks are resident.
size_t smem_limit(const TmaSweep& s) { return (kTmaMostSmem + 1024) / s.blocks - 1024; }

bool fits(const TmaTileShape& g, const TmaSweep& s) { return g.tiles > 0 && smem_of(g) <= smem_limit(s); }

// What a pixel's channels cost more where a slice has not all of them: lines, atoms of 64 bytes and sectors
// are shared with the next slice.
double narrow(const TmaTileShape& g, int bytes, int pixel_bytes) {
  if (g.slices == 1 || bytes % 128 == 0) return 1;
  if (bytes % 64 == 0) return pixel_bytes % 128 == 0 ? 1 : 1.06;
  return 1.1;
}

// A rough model of the time, which tells the choices that are worth a trial: in cycles of a multiprocessor,
// the larger of what its tiles move, what they compute and what one block takes that waits for nothing, and
// the first load and last store that nothing hides. Its constants are fitted to what an H100 measures.
double cost(const TmaTileShape& g, const TmaSweep& s, const Device& device) {
  constexpr double kBytes = 12.3;         // from and to memory in a cycle
  constexpr double kSlots = 3.6;          // instructions a cycle that are issued when enough warps are ready
  constexpr double kInFlight = 40 << 10;  // bytes under way for that speed
  const int line = g.channels * s.element_bytes;
  const double pixel = line;
  const double box = pixel * g.images * std::min(g.box_w, s.source_w) * std::min(g.box_h, s.source_h);
  const double swept = pixel * g.images * std::min(g.columns, g.width) * g.rows;
  const double read =  // compulsory; what two boxes share is read again from L2
      swept / (1.0 * s.width * s.height) * s.source_w * s.source_h;
  const double cut = g.slices > 1 && line % 32 != 0 ? 1.7 : 1;  // sectors that two slices store
  const double moved =
      read + std::max(0.0, box - read) * 0.1 + swept * (s.stored_pixels * cut + s.loads_swept);

  const int warps = ceil_div(g.pairs * g.strips * g.groups * g.images, 32);
  const double row = s.columns * s.pixel_slots + s.step * s.window_slots + 16;
  const double slots = warps * (g.group_rows * row + (s.window - s.step) * s.window_slots + 60);

  const double resident = ceil_div(g.blocks * g.slices, device.multiprocessors);
  const double turns = ceil_div(g.tiles, g.blocks), rounds = turns * resident;
  const double load = box + (s.loads_swept ? swept : 0);
  const double waits = std::max(1.0, kInFlight / (resident * (g.stages - 1.0) * load));
  const double memory = rounds * moved * narrow(g, line, g.c * s.element_bytes) / kBytes * waits;
  const double arithmetic = rounds * slots / std::min(kSlots, resident * warps / 3.0);
  const double walk = turns * (1.7 * g.group_rows * row + 1300);
  const double alone = resident * (load + swept * s.stored_pixels) / kBytes + 1.5 * g.group_rows * row;
  const double longest = std::max({memory, arithmetic, walk});
  return longest + 0.12 * (memory + arithmetic + walk - longest) + 0.3 * alone + 1000;
}

// The model that decides among those, and between this kernel and tma_rows (tma_rows_cycles): the same parts
// in cycles, added as cubes, since none is quite hidden behind another. Its constants are fitted to the times
// of the choices worth a trial for the 3x3 layers of the built-in networks at batch 512, in bf16, on an H100.
double cycles(const TmaTileShape& g, const TmaSweep& s, const Device& device) {
  constexpr double kBytes = 13.5;         // from and to memory in a cycle
  constexpr double kSlots = 4;            // instructions a cycle that are issued when enough warps are ready
  constexpr double kInFlight = 36 << 10;  // bytes under way for that speed
  const double resident = ceil_div(g.blocks * g.slices, device.multiprocessors);
  const double turns = ceil_div(g.tiles, g.blocks);
  // Tiles: a multiprocessor that has more than the mean has more than the mean of memory's speed for a while.
  const double here =
      (std::max(1.0, 1.0 * g.tiles * g.slices / device.multiprocessors) + turns * resident) / 2;

  const int line = g.channels * s.element_bytes, pixel_bytes = g.c * s.element_bytes;
  const double pixel = 1.0 * line * g.images;
  const double box = pixel * std::min(g.box_w, s.source_w) * std::min(g.box_h, s.source_h);
  const double swept = pixel * std::min(g.columns, g.width) * g.rows;
  const double read = swept / (1.0 * s.width * s.height) * s.source_w * s.source_h;  // compulsory
  const double loaded = read + std::max(0.0, box - read) * 0.1 + (s.loads_swept ? swept : 0);
  const double moved = loaded * tma_line_cost(line, pixel_bytes, false) +
                       swept * s.stored_pixels * tma_line_cost(line, pixel_bytes, true);
  const double load = box + (s.loads_swept ? swept : 0);
  const double wanted = kInFlight / (resident * (g.stages - 1) * load);
  const double memory = here * moved / kBytes * std::sqrt(std::sqrt(1 + std::pow(wanted, 4)));

  const int warps = ceil_div(g.pairs * g.strips * g.groups * g.images, 32);
  const double row = s.columns * s.pixel_slots + s.step * s.window_slots + 16;
  const double slots = g.group_rows * row + (s.window - s.step) * s.window_slots;  // a warp's, a tile
  const double arithmetic = here * warps * slots / std::min(kSlots, resident * warps / 2);
  const double walk = turns * (2.1 * slots + 1100);
  const double longest = std::cbrt(std::pow(memory, 3) + std::pow(arithmetic, 3) + std::pow(walk, 3));

  const double alone = 4950 + 0.2 * resident * load / kBytes + 3 * g.group_rows * row;
  if (!s.loads_swept) return longest + alone;
  const DepthwiseWgradSum sum = {.parts = g.blocks,
                                 .elements = s.window * s.window * g.c,
                                 .filter = s.window * s.window * g.c,
                                 .slices = g.slices,
                                 .slice_elements = s.window * s.window * g.channels,
                                 .threads = kTmaTileThreads};
  return longest + alone + 8.8 * resident * sum.slice_elements / kBytes +
         depthwise_wgrad_last_block_cycles(sum);
}

struct Candidate {
  Choice choice;
  double cost;
};

// Best first.
std::vector<Candidate> candidates(const TmaSweep& s, const Device& device) {
  const int unit = 16 / s.element_bytes;
  std::set<int> channels, rows;
  for (int slices = 1; slices <= 32; ++slices) channels.insert(round_up(ceil_div(s.c, slices), unit));
  for (const int width : {8, 16, 32, 64, 128}) channels.insert(std::min(width, round_up(s.c, unit)));
  for (const int parts : {1, 2, 3, 4, 6, 8, 16, 32})
    rows.insert(ceil_div(s.height, std::min(parts, s.height)));
  if (s.height > 64) rows.insert({1, 2, 4, 8, 16});
  std::vector<Candidate> list;
  for (const int c : channels) {
    if (c < s.c && c * s.element_bytes < kTmaLeastLine) continue;
    for (const int h : rows) {
      for (int n = 1; n <= 64 && (n == 1 || (h == s.height && n <= s.n)); n *= 2) {
        Choice choice = {c, h, n, kTmaTileMostStages};
        TmaTileShape g = shape_of(choice, s, device);
        while (g.tiles > 0 && choice.stages > 2 && !fits(g, s)) {
          --choice.stages;
          g = shape_of(choice, s, device);
        }
        if (fits(g, s)) list.push_back({choice, cost(g, s, device)});
      }
    }
  }
  std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.cost < b.cost; });
  return list;
}

// The fastest few by cost().
std::vector<Choice> worth_a_trial(const TmaSweep& s, const Device& device) {
  constexpr size_t kMost = 10;
  std::vector<Choice> choices;
  for (const Candidate& candidate : candidates(s, device)) {
    if (choices.size() < kMost) choices.push_back(candidate.choice);
  }
  return choices;
}

// The fastest of those by cycles(); where there is none, stages = 0 and infinitely many cycles.
Candidate best_of(const TmaSweep& s, const Device& device) {
  Candidate best = {{}, std::numeric_limits<double>::infinity()};
  for (const Choice& choice : worth_a_trial(s, device)) {
    const double time = cycles(shape_of(choice, s, device), s, device);
    if (time < best.cost) best = {choice, time};
  }
  return best;
}

}  // namespace

TmaTilePlan plan_tma_tile(const TmaSweep& s, const Device& device, std::string_view config) {
  Choice choice;
  if (config.empty()) {
    choice = best_of(s, device).choice;
    if (choice.stages == 0) fail_usage("no tile of this problem fits shared memory");
  } else if (!read_tma_config<Choice>(config, kFields, choice)) {
    fail_usage("the config is c<channels>_h<rows>_n<images>_s<stages> of a tile (c64_h8_n1_s4), got '" +
               std::string(config) + "'");
  }
  const TmaTileShape g = shape_of(choice, s, device);
  if (!fits(g, s)) {
    fail_usage(std::string(config) +
               " is no tile of this problem: 2 to 8 stages of a block must fit shared memory, boxes have at "
               "most 256 elements a side, several images only where a tile is a whole image");
  }
  return {g, static_cast<unsigned>(g.blocks) * g.slices, smem_of(g)};
}

double tma_tile_cycles(const TmaSweep& s, const Device& device) { return best_of(s, device).cost; }

std::vector<std::string> tma_tile_configs(const TmaSweep& s, const Device& device) {
  std::vector<std::string> configs;
  for (const Choice& choice : worth_a_trial(s, device)) {
    configs.push_back(tma_config_text<Choice>(choice, kFields));
  }
  return configs;
}

Support tma_tile_supports(const DepthwiseConv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("TMA as this kernel uses it needs compute capability 9.0");
  if (p.c * size_of(p.dtype) % 16 != 0)
    return Support::no("a pixel's channels must be a multiple of 16 bytes");
  return depthwise_supports(p, device);
}

bool tma_dgrad_preferred(const DepthwiseConv2dProblem& p) {
  const size_t pixel = static_cast<size_t>(p.c) * size_of(p.dtype);
  return p.r == 3 && (p.stride_h == 1 || p.h <= 8 || pixel % 128 == 0);
}

}  // namespace kiln
