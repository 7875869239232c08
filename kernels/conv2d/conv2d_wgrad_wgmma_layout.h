// Host side of wgrad's product (conv2d_wgrad_wgmma.cuh): the tile shapes, how a shape shares a problem out,
// and how long that is thought to take.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_split.h"
#include "kernels/conv2d/conv2d_wgrad_wgmma_work.cuh"

namespace kiln {

template <int kGroupsM_, int kGroupsN_, int kMTiles_, int kN_, int kSpan_, int kBK_, int kStages_>
struct WgradWgmmaConfig {
  static constexpr int kGroupsM = kGroupsM_, kGroupsN = kGroupsN_, kMTiles = kMTiles_, kN = kN_;
  static constexpr int kSpan = kSpan_, kBK = kBK_, kStages = kStages_;
  static constexpr int kGroups = kGroupsM * kGroupsN;  // consumer warpgroups
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kBM = kGroupsM * kMTiles * 64, kBN = kGroupsN * kN;
  static constexpr int kABoxes = kBM / 64, kBBoxes = kBN / kSpan;
  static constexpr int kABoxBytes = kBK * 64 * 2, kBBoxBytes = kBK * kSpan * 2;
  static constexpr int kABytes = kABoxes * kABoxBytes;
  static constexpr int kStageBytes = kABytes + kBBoxes * kBBoxBytes;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kSmemBytes = kStages * kStageBytes + (2 * kStages + 1) * 8 + kAlignment;
  static constexpr int kGivenBytes = kBM * kBN * 4 / 2;  // what a block of a pair gets from the other
  static constexpr int kProducerRegisters = 56, kConsumerRegisters = kGroups == 2 ? 224 : 152;
  static_assert(kGroups == 2 || kGroups == 3, "registers are shared out for two or three consumers");
  static_assert(kProducerRegisters + kGroups * kConsumerRegisters <=
                    (kGroups + 1) * (kGroups == 2 ? 168 : 128),
                "registers of the block");
  static_assert(kABoxes + kBBoxes <= 32, "a box a lane");
  static_assert(kN % kSpan == 0 && kBK % 16 == 0, "whole boxes, whole k16 steps");
  static_assert(kBBoxBytes % kAlignment == 0 && kABoxBytes % kAlignment == 0,
                "boxes start a swizzle pattern");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

constexpr int kWgradShortestChain = 5120;  // see longest_chain

enum class WgradWalk { kPixels, kImages };

struct WgradMode {
  WgradWalk walk;
  int pair;   // blocks of a cluster
  bool even;  // shares
};

// A 1x1 filter over whole maps is a plain product: every pixel counts as an image.
inline bool wgrad_is_plain(const Conv2dProblem& p) {
  return p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0;
}

inline Conv2dProblem wgrad_walked(Conv2dProblem p, WgradWalk walk) {
  if (walk == WgradWalk::kImages && wgrad_is_plain(p)) p.n *= p.h * p.w, p.h = p.w = 1;
  return p;
}

// Whether the filter has one tap and both sides have many channels: boxes are full, and no tile reads pixels
// of x displaced against those of another.
inline bool wgrad_is_deep(int taps, int c, int k) { return taps == 1 && std::min(c, k) >= 96; }

// A tile shape and a mode applied to a problem, which is the walked one; infinite cost where it does not fit.
template <class Config>
struct WgradLayout {
  WgradWgmmaShape shape;
  int blocks = 0, parts = 0;  // of the grid; most of a tile
  double cost = std::numeric_limits<double>::infinity();
  int places;                       // for blocks
  double step = 0, read_bytes = 0;  // clocks of a step; of x and dy

  WgradLayout(const Conv2dProblem& p, WgradMode mode, const Device& device)
      : shape{.by_image = mode.walk == WgradWalk::kImages,
              .blocks = ceil_div(mode.walk == WgradWalk::kImages ? p.n : p.n * p.p() * p.q(), Config::kBK),
              .h = p.h,
              .w = p.w,
              .p = p.p(),
              .q = p.q(),
              .stride_h = p.stride_h,
              .stride_w = p.stride_w,
              .pad_h = p.pad_h,
              .pad_w = p.pad_w,
              .k = p.k,
              .c = p.c,
              .s = p.s,
              .slices = ceil_div(p.c, Config::kSpan),
              .column_boxes = p.r * p.s * ceil_div(p.c, Config::kSpan),
              .columns = p.r * p.s * p.c,
              .tile_boxes = Config::kBBoxes,
              .row_tiles = ceil_div(p.k, Config::kBM),
              .column_tiles = ceil_div(p.r * p.s * ceil_div(p.c, Config::kSpan), Config::kBBoxes),
              .part_steps = std::numeric_limits<int>::max(),
              .common_parts = 1,
              .pair = mode.pair,
              .teams = 0,
              .groups = 0,
              .group_tiles = 0,
              .starts = {}},
        places(device.multiprocessors) {
    const double x_pixels = 1.0 * p.n * (p.r == 1 && p.s == 1 ? p.p() * p.q() : p.h * p.w);
    read_bytes = 2 * (x_pixels * p.c + 1.0 * p.n * p.p() * p.q() * p.k);
    step = step_clocks(shape.column_tiles);
    std::vector<int> lengths;  // of the column tiles
    for (int box = 0; box < shape.column_boxes; box += Config::kBBoxes) {
      lengths.push_back(wgrad_window(shape, box).steps);
    }
    std::vector<int> distinct = lengths;
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const int longest = std::max(distinct.back(), 1);
    const int chain = longest_chain(p.n * p.p() * p.q(), kWgradShortestChain) / Config::kBK * shape.pair;
    const long long most =
        std::clamp((32LL << 20) / (1LL * shape.k * shape.columns), 1LL, 4LL * device.multiprocessors);
    if (mode.even) {
      choose_teams(lengths, chain, static_cast<int>(std::min<long long>(most, longest)));
      return;
    }
    choose(lengths, ceil_div(longest, static_cast<int>(std::min<long long>(most, longest))));
    for (const int length : distinct) {
      for (int count = 1; count <= most && length >= 8 * count * shape.pair; ++count) {
        const int steps = ceil_div(length, count);
        if (steps <= chain && ceil_div(longest, steps) <= most) choose(lengths, steps);
      }
    }
  }

 private:
  static constexpr double kEnds = 4000 + 4.0 * Config::kBM * Config::kBN / 160;

  bool is_deep() const { return wgrad_is_deep(shape.columns / shape.c, shape.c, shape.k); }

  // Clocks of a step at a multiprocessor (H100): its products, its reads of L2 and its copies, which overlap
  // but not wholly. Products of 64 x 64 want more of their operands from shared memory than it delivers, the
  // more so while full boxes arrive. Of a step's boxes neighbouring blocks share what they both read, up to
  // six of them, of x less where taps are displaced; a 128 x 128 tile, which has as many boxes of dy as of x
  // and the fewest products for them, then waits. A copy makes a row of a box in about two clocks, of pixels
  // that are no whole lines more slowly. Walking by image reads rows that lie far apart, the farther the
  // smaller the map. `neighbours`: column tiles at work on the same pixels.
  double step_clocks(int neighbours) const {
    constexpr double kFast = Config::kMTiles > 1 ? 0.8 : 0.87;
    const double rate = Config::kBK < 64 ? 0.7 : Config::kN >= 96 ? kFast : is_deep() ? 0.3 : 0.385;
    const double products = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * rate);
    const double a_boxes = std::min(1.0 * Config::kABoxes, 1.0 * ceil_div(shape.k, 64) / shape.row_tiles);
    const double b_boxes = 1.0 * shape.column_boxes / shape.column_tiles;
    const double rows = std::min(shape.row_tiles, 6), columns = std::clamp(6 / rows, 1.0, 1.0 * neighbours);
    const double bytes = a_boxes * Config::kABoxBytes / columns +
                         b_boxes * Config::kBBoxBytes / (shape.columns == shape.c ? rows : std::sqrt(rows));
    const double reads = bytes / (!shape.by_image ? 35 : 33);
    const double copies = 2.2 * Config::kBK * (a_boxes + b_boxes) * (shape.c % 32 ? 2.3 : 1);
    const double clocks = std::pow(std::pow(products, 4) + std::pow(reads, 4) + std::pow(copies, 4), 0.25) *
                          (Config::kBM * Config::kBN == 128 * 128 && !is_deep() ? 1.5 : 1);
    return is_strewn() ? clocks * (1 + 0.5 / (shape.p * shape.q)) : clocks;
  }

  bool is_strewn() const { return shape.by_image && shape.h * shape.w > 1; }

  // Clocks of a launch: waves of blocks, or x and dy from memory, of which single boxes or half boxes of long
  // rows come more slowly, then the sum over parts, of which there are `summed` in all column tiles.
  double launch_clocks(double work, int busy, long long summed) const {
    const double share = 1.0 * shape.k * shape.columns / shape.column_tiles;
    const double sum = summed ? 1500 + 4.0 * static_cast<double>(summed) * share / (6.2 * places) : 0;
    const bool pieces = Config::kBBoxes == 1 ? shape.slices >= 4 : Config::kSpan == 32 && shape.slices >= 3;
    const double rate = is_strewn() ? 10.5 : pieces ? 9 : 11.5;
    const double memory = read_bytes / (rate * busy) + kEnds, most = std::max(work, memory);
    const double both =
        is_deep() ? most * std::pow(1 + std::pow(std::min(work, memory) / most, 8), 0.125) : most;
    return both + 0.05 * work + sum;
  }

  // Takes parts of at most `steps` if nothing so far is faster.
  void choose(const std::vector<int>& lengths, int steps) {
    const double exchange = shape.pair > 1 ? 2000 + Config::kBM * Config::kBN / 10.0 : 0;
    long long count = 0, summed = 0;
    int longest_part = 0, most_parts = 1, least_parts = std::numeric_limits<int>::max();
    for (const int length : lengths) {
      const int tile_parts = std::max(1, ceil_div(length, steps));
      count += 1LL * tile_parts * shape.row_tiles * shape.pair;
      summed += tile_parts > 1 ? tile_parts : 0;
      longest_part = std::max(longest_part, ceil_div(length, tile_parts * shape.pair));
      most_parts = std::max(most_parts, tile_parts);
      least_parts = std::min(least_parts, tile_parts);
    }
    const double waves = static_cast<double>(ceil_div<long long>(count, places));
    const double clocks = launch_clocks(waves * (longest_part * step + kEnds + exchange),
                                        static_cast<int>(std::min<long long>(count, places)), summed);
    if (clocks >= cost) return;
    shape.part_steps = steps;
    shape.common_parts = least_parts;
    blocks = static_cast<int>(count);
    parts = most_parts;
    cost = clocks;
  }

  // Whether groups of `tiles` column tiles have the same positions throughout; then shape.starts is theirs.
  bool group(const std::vector<int>& lengths, int tiles) {
    const int count = shape.column_tiles / tiles;
    if (shape.column_tiles % tiles != 0 || count > kMaxWgradGroups) return false;
    shape.groups = count;
    shape.group_tiles = tiles;
    for (int i = 0; i < shape.column_tiles; ++i) {
      const WgradWindow own = wgrad_window(shape, i * Config::kBBoxes);
      const WgradWindow first = wgrad_window(shape, i / tiles * tiles * Config::kBBoxes);
      if (lengths[i] == 0 || own.first_p != first.first_p || own.p != first.p ||
          own.first_q != first.first_q || own.q != first.q) {
        return false;
      }
      if (i % tiles == 0) shape.starts[i / tiles + 1] = shape.starts[i / tiles] + lengths[i];
    }
    return true;
  }

  // Takes the teams that are done first: as many as fill the GPU, or a multiple of it where shares would be
  // longer than `chain`.
  void choose_teams(const std::vector<int>& lengths, int chain, int most_parts) {
    const WgradWgmmaShape before = shape;
    WgradWgmmaShape best = shape;
    for (int tiles = 1; tiles <= shape.column_tiles; ++tiles) {
      const int members = shape.row_tiles * tiles;
      if (members > places) break;
      shape = before;
      if (!group(lengths, tiles)) continue;
      const int steps = shape.starts[shape.groups], wave = places / members;
      const int waves = std::max(1, ceil_div(steps, wave * chain));
      shape.teams = std::min(wave * waves, std::max(1, steps / 8));
      long long summed = 0;
      int most = 1;
      for (int i = 0; i < shape.groups; ++i) {
        const int own = wgrad_group_parts(shape, i);
        summed += own > 1 ? own * tiles : 0;
        most = std::max(most, own);
      }
      if (most > most_parts) continue;
      int pieces = 1;  // most of a share
      for (int team = 0, at = 0; team < shape.teams; ++team) {
        while (shape.starts[at + 1] <= wgrad_share(shape, team)) ++at;
        int end = at;
        while (shape.starts[end + 1] < wgrad_share(shape, team + 1)) ++end;
        pieces = std::max(pieces, end - at + 1);
      }
      const double next = 1500 + 4.0 * Config::kBM * Config::kBN / 50;  // sums written, copies go on
      const double share = ceil_div(steps, shape.teams) * step_clocks(tiles);
      const double clocks = launch_clocks(waves * (share + kEnds + (pieces - 1) * next),
                                          std::min(wave, shape.teams) * members, summed);
      if (clocks >= cost) continue;
      best = shape;
      blocks = shape.teams * members;
      parts = most;
      cost = clocks;
    }
    shape = best;
  }
};

}  // namespace kiln
