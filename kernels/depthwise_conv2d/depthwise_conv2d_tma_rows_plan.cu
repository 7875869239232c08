// Host side of the tma_rows kernels of depthwise_conv2d: which tiles there are, which one to take.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "kernels/common/error.h"
#include "kernels/common/grid.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_rows.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.h"

namespace kiln {
namespace {

constexpr int kMostImages = 64;   // threads of a block in its third dimension
constexpr int kMostGrid = 65535;  // blocks in the grid's second and third
constexpr int kMostBlocks = 16;   // of a multiprocessor that are worth it

struct Choice {
  int channels = 0, rows = 0, images = 0, stage_rows = 0, stages = 0, blocks = 0;
};
constexpr TmaConfigField<Choice> kFields[] = {{"c", &Choice::channels}, {"_h", &Choice::rows},
                                              {"_n", &Choice::images},  {"_k", &Choice::stage_rows},
                                              {"_s", &Choice::stages},  {"_b", &Choice::blocks}};

int threads_of(const TmaRowsShape& g) { return round_up(g.groups * g.strips * g.images, 32); }  // whole warps
int steps_of(const TmaRowsShape& g, const TmaRowsSweep& s) { return (g.rows - 1) * g.step + s.window; }

// Bytes of a block.
size_t smem_of(const TmaRowsShape& g) {
  return kTmaAlignment + static_cast<size_t>(g.control_at) + g.stages * kTmaRowsControlBytes +
         kTmaRowsFillBytes;
}

// How the images are dealt out to the blocks that fit the device.
void deal(TmaRowsShape& g, const Device& device, int blocks) {
  const int tiles = g.slices * g.column_tiles * g.row_tiles, tasks = ceil_div(g.n, g.images);
  const int walks = std::min(tasks, std::max(1, device.multiprocessors * blocks / tiles));
  g.walks = ceil_div(tasks, ceil_div(tasks, walks));  // no more than what as many rounds take
}

// The tiles of a choice; slices = 0 where there are none.
TmaRowsShape shape_of(const Choice& choice, const TmaRowsSweep& s, const Device& device) {
  const TmaRowsShape none = {};
  TmaRowsShape g = {};
  const int unit = 16 / s.element_bytes;
  if (choice.channels < unit || choice.channels % unit || choice.channels > kTmaMostBox) return none;
  if (choice.rows < 1 || choice.rows > s.height || choice.images < 1 || choice.images > s.n) return none;
  if (choice.stage_rows < 1 || choice.stage_rows > kTmaMostBox || choice.images > kMostImages) return none;
  if (choice.stages < 2 || choice.stages > kTmaRowsMostStages) return none;
  if (choice.blocks < 1 || choice.blocks > kMostBlocks) return none;
  if (s.loads_swept && choice.stage_rows % s.step != 0) return none;
  g.n = s.n;
  g.height = s.height;
  g.width = s.width;
  g.c = s.c;
  g.source_h = s.source_h;
  g.step = s.step;
  g.origin_h = s.origin_h;
  g.origin_w = s.origin_w;
  g.channels = choice.channels;
  g.rows = choice.rows;
  g.images = choice.images;
  g.stage_rows = choice.stage_rows;
  g.stages = choice.stages;
  g.groups = g.channels / s.vector;
  // Whole rows of the map, unless they are too wide for a box or for the threads of a block.
  const int strips = ceil_div(s.width, s.columns);
  const int widest =
      std::min(s.threads / (g.groups * g.images), ((kTmaMostBox - s.window) / s.step + 1) / s.columns);
  if (widest < 1) return none;
  g.column_tiles = ceil_div(strips, widest);
  g.strips = ceil_div(strips, g.column_tiles);
  g.columns = g.strips * s.columns;
  g.slices = ceil_div(s.c, g.channels);
  g.row_tiles = ceil_div(s.height, g.rows);
  g.row_tiles_divisor = FastDivisor(static_cast<unsigned>(g.row_tiles));
  g.box_w = (g.columns - 1) * g.step + s.window;
  const long long pixel = 1LL * g.images * g.channels * s.element_bytes;
  const long long source = pixel * g.box_w * g.stage_rows;
  const long long swept = s.loads_swept ? pixel * g.columns * (g.stage_rows / g.step) : 0;
  if (source + swept > kTmaMostSmem) return none;  // a barrier counts up to 2^20 - 1 bytes
  g.load_bytes = static_cast<int>(source + swept);
  g.swept_at = round_up(static_cast<int>(source), kTmaAlignment);
  g.stage_bytes = g.swept_at + round_up(static_cast<int>(swept), kTmaAlignment);
  const int sums = s.task_sum_floats * threads_of(g) * static_cast<int>(sizeof(float));
  g.control_at = std::max(g.stages * g.stage_bytes, round_up(sums, kTmaAlignment));
  deal(g, device, choice.blocks);
  return g.column_tiles <= kMostGrid && 1LL * g.walks * g.row_tiles <= kMostGrid ? g : none;
}

// Whether choice.blocks of them fit a multiprocessor; 1 KiB of a block's memory is the system's.
bool fits(const TmaRowsShape& g, const TmaRowsSweep& s, const Choice& choice) {
  return g.slices > 0 && choice.blocks * threads_of(g) <= 2 * s.threads &&
         smem_of(g) <= static_cast<size_t>((kTmaMostSmem + 1024) / choice.blocks - 1024);
}

// What a row's channels cost more where a slice has not all of them: lines, atoms of 64 bytes and sectors are
// shared with the next slice.
double narrow(const TmaRowsShape& g, int bytes, int pixel_bytes) {
  if (g.slices == 1 || bytes % 128 == 0) return 1;
  if (bytes % 64 == 0) return pixel_bytes % 128 == 0 ? 1.02 : 1.06;
  return bytes % 32 == 0 ? 1.12 : 1.2;
}

// A rough model of the time, which tells the choices that are worth a trial from the thousands that there
// are: in cycles of a multiprocessor, the larger of what its tasks move, what they compute and what a walk of
// one block takes when it waits for nothing, and the first load, last rows and last sums that nothing hides.
// Its constants are fitted to what an H100 measures.
double cost(const TmaRowsShape& g, const TmaRowsSweep& s, const Device& device) {
  constexpr double kBytes = 13;           // from and to memory in a cycle
  constexpr double kSlots = 2.5;          // instructions a cycle that are issued when enough warps are ready
  constexpr double kInFlight = 40 << 10;  // bytes under way for that speed
  const double tiles = 1.0 * g.slices * g.column_tiles * g.row_tiles, tasks = ceil_div(g.n, g.images);
  const double turns = std::ceil(tasks / g.walks), mean = tiles * tasks / device.multiprocessors;
  const double resident = std::max(1.0, std::ceil(tiles * g.walks / device.multiprocessors));
  // Tasks: a multiprocessor that has more than the mean has more than the mean of memory's speed for a while.
  const double here = std::max(1.0, (mean + turns * resident) / 2);

  const int line = g.channels * s.element_bytes;
  const double pixel = 1.0 * line * g.images;
  const double rows = std::min(steps_of(g, s), s.source_h), width = std::min(g.box_w, s.source_w);
  const double swept = pixel * std::min(g.columns, g.width) * g.rows;
  const double box = pixel * width * rows;
  const double read = swept / (1.0 * s.width * s.height) * s.source_w * s.source_h;  // compulsory
  const double moved = read + std::max(0.0, box - read) * 0.1 + swept * (s.stored_pixels + s.loads_swept);
  const double stage = (box + (s.loads_swept ? swept : 0)) / rows * std::min<double>(g.stage_rows, rows);
  const double in_flight = resident * (g.stages - 1.5) * stage;
  const double fills = std::ceil((s.loads_swept ? steps_of(g, s) : rows) / g.stage_rows);
  const double waits = std::max(1.0, kInFlight / in_flight);
  const double memory = here * (moved * narrow(g, line, g.c * s.element_bytes) / kBytes * waits + fills * 60);

  const double warps = threads_of(g) / 32.0;
  const double slots = rows * s.row_slots + fills * 80 + 150;  // a warp's, a task
  const double arithmetic = here * warps * slots / std::min(kSlots, resident * warps / 4.0);
  const double walk = turns * slots * 2.4;
  double alone = 1200 + 1.5 * resident * stage / kBytes + 8 * g.stage_rows * s.row_slots;
  if (s.task_sum_floats > 0) {
    const double sums = 4.0 * s.window * s.window * g.channels;  // bytes, of a block
    const double parts = 1.0 * g.walks * g.column_tiles * g.row_tiles;
    alone += 2 * resident * sums / kBytes + std::min(parts * sums / 64, 3000.0);  // or a second launch
  }
  const double longest = std::max({memory, arithmetic, walk});
  return longest * (1 + 0.05 / resident) + 0.1 * (memory + arithmetic + walk - longest) + alone;
}

// The model that decides among those, and between this kernel and tma_tile (tma_tile_cycles): the same parts
// in cycles, added as cubes, since none is quite hidden behind another. Its constants are fitted to the times
// of the choices worth a trial for the 3x3 layers of the built-in networks at batch 512, in bf16, on an H100.
double cycles(const TmaRowsShape& g, const TmaRowsSweep& s, const Device& device) {
  constexpr double kBytes = 14;           // from and to memory in a cycle
  constexpr double kStored = 0.9;         // of what a byte from memory costs
  constexpr double kSlots = 2;            // instructions a cycle that are issued when enough warps are ready
  constexpr double kInFlight = 36 << 10;  // bytes under way for that speed
  const double tiles = 1.0 * g.slices * g.column_tiles * g.row_tiles, tasks = ceil_div(g.n, g.images);
  const double turns = std::ceil(tasks / g.walks);
  const double resident = std::max(1.0, std::ceil(tiles * g.walks / device.multiprocessors));
  // Tasks of a multiprocessor: as in cost().
  const double here = (std::max(1.0, tiles * tasks / device.multiprocessors) + turns * resident) / 2;

  const int line = g.channels * s.element_bytes, pixel_bytes = g.c * s.element_bytes;
  const double pixel = 1.0 * line * g.images, loads = s.loads_swept ? 2 : 1;
  const double rows = std::min(steps_of(g, s), s.source_h);
  const double box = pixel * std::min(g.box_w, s.source_w) * rows;
  const double swept = pixel * std::min(g.columns, g.width) * g.rows;
  const double read = swept / (1.0 * s.width * s.height) * s.source_w * s.source_h;  // compulsory
  const double loaded = read + std::max(0.0, box - read) * 0.1 + (s.loads_swept ? swept : 0);
  const double moved = loaded * tma_line_cost(line, pixel_bytes, false) +
                       swept * s.stored_pixels * tma_line_cost(line, pixel_bytes, true) * kStored;
  const double stage = (box + (s.loads_swept ? swept : 0)) / rows * std::min<double>(g.stage_rows, rows);
  const double fills = std::ceil((s.loads_swept ? steps_of(g, s) : rows) / g.stage_rows);
  const double wanted = kInFlight / (resident * (g.stages - 1.5) * stage);
  const double waits = std::sqrt(std::sqrt(1 + std::pow(wanted, 4)));
  const double memory = here * (moved / kBytes * waits + fills * loads * 67);

  const double warps = threads_of(g) / 32.0, slots = rows * s.row_slots;  // a warp's, a task
  const double arithmetic = here * warps * slots / std::min(kSlots, resident * warps / 4.5);
  const double walk = turns * slots * 2;
  const double longest = std::cbrt(std::pow(memory, 3) + std::pow(arithmetic, 3) + std::pow(walk, 3));

  if (!s.loads_swept) return longest + 3400 + 8.5 * g.stage_rows * s.row_slots;  // the last rows to store
  const DepthwiseWgradSum sum = {.parts = g.walks * g.column_tiles * g.row_tiles,
                                 .elements = s.window * s.window * g.c,
                                 .filter = s.window * s.window * g.c,
                                 .slices = g.slices,
                                 .slice_elements = s.window * s.window * g.channels,
                                 .threads = g.groups * g.strips * g.images};
  return longest + 3400 + 24 * resident * sum.slice_elements / kBytes +
         depthwise_wgrad_last_block_cycles(sum);
}

struct Candidate {
  Choice choice;
  double cost;
};

// Best first.
std::vector<Candidate> candidates(const TmaRowsSweep& s, const Device& device) {
  const int unit = 16 / s.element_bytes;
  std::set<int> channels, rows;
  for (int slices = 1; slices <= 32; ++slices) channels.insert(round_up(ceil_div(s.c, slices), unit));
  for (const int width : {8, 16, 32, 64, 128})
    channels.insert(std::min(round_up(width, unit), round_up(s.c, unit)));
  for (const int parts : {1, 2, 4, 8}) rows.insert(ceil_div(s.height, std::min(parts, s.height)));
  std::vector<Candidate> list;
  for (const int c : channels) {
    if (c < s.c && c * s.element_bytes < kTmaLeastLine) continue;
    for (const int h : rows) {
      std::set<int> stage_rows;
      const int all = (h - 1) * s.step + s.window;
      const int steps = s.loads_swept ? round_up(all, s.step) : std::min(all, s.source_h);
      for (const int k : {2, 4, 6, 8, steps, round_up(ceil_div(steps, 2), s.step)}) {
        if (k <= std::max(steps, s.step)) stage_rows.insert(k);
      }
      for (int n = 1; n <= std::min(16, s.n); n *= 2) {
        for (const int k : stage_rows) {
          for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
            Choice choice = {c, h, n, k, kTmaRowsMostStages, blocks};
            TmaRowsShape g = shape_of(choice, s, device);
            if (g.slices > 0 && blocks * threads_of(g) > 2 * s.threads) break;  // nor do more fit
            while (g.slices > 0 && choice.stages > 2 && !fits(g, s, choice)) {
              --choice.stages;
              g = shape_of(choice, s, device);
            }
            if (fits(g, s, choice)) list.push_back({choice, cost(g, s, device)});
          }
        }
      }
    }
  }
  std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.cost < b.cost; });
  return list;
}

// What is worth a trial: the fastest few by cost(), of one tile no more than two, with stages of different
// depth, and tiles of several sizes.
std::vector<Choice> worth_a_trial(const TmaRowsSweep& s, const Device& device) {
  constexpr size_t kMost = 14;
  constexpr int kMostOfSize = 4;
  std::vector<Choice> choices;
  std::map<std::array<int, 3>, std::set<int>> of_tile;  // their stages' rows
  std::map<std::array<int, 2>, int> of_size;
  for (const auto& [choice, time] : candidates(s, device)) {
    if (choices.size() == kMost) break;
    std::set<int>& depths = of_tile[{choice.channels, choice.rows, choice.images}];
    int& count = of_size[{choice.channels, choice.rows}];
    if (count == kMostOfSize || depths.size() == 2 || !depths.insert(choice.stage_rows).second) continue;
    ++count;
    choices.push_back(choice);
  }
  return choices;
}

// The fastest of those by cycles(); where there is none, stages = 0 and infinitely many cycles.
Candidate best_of(const TmaRowsSweep& s, const Device& device) {
  Candidate best = {{}, std::numeric_limits<double>::infinity()};
  for (const Choice& choice : worth_a_trial(s, device)) {
    const double time = cycles(shape_of(choice, s, device), s, device);
    if (time < best.cost) best = {choice, time};
  }
  return best;
}

}  // namespace

TmaRowsPlan plan_tma_rows(const TmaRowsSweep& s, const Device& device, std::string_view config) {
  Choice choice;
  if (config.empty()) {
    choice = best_of(s, device).choice;
    if (choice.stages == 0) fail_usage("no tile of this problem fits shared memory");
  } else if (!read_tma_config<Choice>(config, kFields, choice)) {
    fail_usage(
        "the config is c<channels>_h<rows>_n<images>_k<rows of a stage>_s<stages>_b<blocks> "
        "(c64_h32_n1_k4_s6_b4), got '" +
        std::string(config) + "'");
  }
  const TmaRowsShape g = shape_of(choice, s, device);
  if (!fits(g, s, choice)) {
    fail_usage(std::string(config) +
               " is no tile of this problem: so many blocks of 2 to 8 stages must fit a multiprocessor's "
               "shared memory and registers, boxes have at most 256 elements a side");
  }
  const auto size = [](int v) { return static_cast<unsigned>(v); };
  return {.shape = g,
          .grid = {size(g.slices), size(g.column_tiles), size(g.walks) * size(g.row_tiles)},
          .block = {size(g.groups), size(g.strips), size(g.images)},
          .smem_bytes = smem_of(g)};
}

double tma_rows_cycles(const TmaRowsSweep& s, const Device& device) { return best_of(s, device).cost; }

std::vector<std::string> tma_rows_configs(const TmaRowsSweep& s, const Device& device) {
  std::vector<std::string> configs;
  for (const Choice& choice : worth_a_trial(s, device)) {
    configs.push_back(tma_config_text<Choice>(choice, kFields));
  }
  return configs;
}

}  // namespace kiln
