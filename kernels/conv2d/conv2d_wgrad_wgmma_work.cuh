// How the product behind wgrad (conv2d_wgrad_wgmma.cuh) is shared out: which steps a column tile has, into
// how many parts they are cut, which tiles and parts a block takes, and how many parts an element of dw is
// the sum of. All are formulas of the shape, so that the host, the product and the sum over parts agree.
//
// Either each column tile is cut into parts of its own, one a block. Or the shares are even: a team of
// blocks, one for each row tile and column tile of a group, does the group's steps in lockstep, so that it
// shares what L2 sends; the steps of all groups follow each other in one line, which is cut into as many
// equal shares as there are teams. A share may end inside a group and go on in the next: a team's block then
// has several tiles, one after the other, and leaves a part of each.
#pragma once

#include <cstdint>

#include "kernels/common/fast_divisor.cuh"
#include "kernels/common/host_device.h"

namespace kiln {

constexpr int kMaxWgradGroups = 32;

struct WgradWgmmaShape {
  bool by_image;   // the walk
  int blocks;      // of kBK images, or of kBK pixels
  int h, w, p, q;  // input and output map
  int stride_h, stride_w, pad_h, pad_w;
  int k, c;          // channels
  int s;             // filter width
  int slices;        // boxes of kSpan channels that cover c
  int column_boxes;  // taps * slices
  int columns;       // R*S*C
  int tile_boxes;    // boxes of a column tile
  int row_tiles, column_tiles;
  int part_steps;                   // most steps of a part
  int common_parts;                 // fewest parts of a column tile
  int pair;                         // blocks of a cluster, which share a part and add up their sums: 1 or 2
  int teams;                        // of blocks with even shares; 0: parts of column tiles
  int groups, group_tiles;          // with even shares: of column tiles, as many steps each; tiles of a group
  int starts[kMaxWgradGroups + 1];  // with even shares: steps of all groups before; the last is the sum
};

// The steps of a column tile: output rows first_p..+p by columns first_q..+q in every block of images.
struct WgradWindow {
  int first_p, p, first_q, q;
  int steps, parts;
};

// Output positions [first, first + count) of `out` whose input position under filter offset `tap` exists.
KILN_HOST_DEVICE inline void wgrad_inside(int out, int in, int stride, int pad, int tap, int* first,
                                          int* count) {
  const int below = pad - tap, above = in - 1 + pad - tap;
  *first = below > 0 ? (below + stride - 1) / stride : 0;
  const int end = above < 0 ? 0 : above / stride + 1;
  *count = (end < out ? end : out) - *first;
  if (*count < 0) *count = 0;
}

KILN_HOST_DEVICE inline WgradWindow wgrad_window(const WgradWgmmaShape& g, int first_box) {
  WgradWindow window = {0, 1, 0, 1, g.blocks, 1};
  if (g.by_image) {
    const int beyond = first_box + g.tile_boxes;
    const int tap = first_box / g.slices, last = (beyond < g.column_boxes ? beyond : g.column_boxes) - 1;
    window.p = g.p;
    window.q = g.q;
    if (last / g.slices == tap) {
      wgrad_inside(g.p, g.h, g.stride_h, g.pad_h, tap / g.s, &window.first_p, &window.p);
      wgrad_inside(g.q, g.w, g.stride_w, g.pad_w, tap % g.s, &window.first_q, &window.q);
    }
    window.steps *= window.p * window.q;
  }
  if (window.steps > g.part_steps) window.parts = (window.steps + g.part_steps - 1) / g.part_steps;
  return window;
}

// The first step of a team's share.
KILN_HOST_DEVICE inline int wgrad_share(const WgradWgmmaShape& g, int team) {
  return static_cast<int>(1LL * g.starts[g.groups] * team / g.teams);
}

// The team in whose share a step is: the last whose share starts at or before it.
KILN_HOST_DEVICE inline int wgrad_team(const WgradWgmmaShape& g, int step) {
  return static_cast<int>(((step + 1LL) * g.teams - 1) / g.starts[g.groups]);
}

// Teams that have steps of a group, each of which leaves a part. No share is empty.
KILN_HOST_DEVICE inline int wgrad_group_parts(const WgradWgmmaShape& g, int group) {
  return wgrad_team(g, g.starts[group + 1] - 1) - wgrad_team(g, g.starts[group]) + 1;
}

KILN_HOST_DEVICE inline int wgrad_tile_parts(const WgradWgmmaShape& g, int column_tile) {
  return g.teams ? wgrad_group_parts(g, column_tile / g.group_tiles)
                 : wgrad_window(g, column_tile * g.tile_boxes).parts;
}

// Parts of the tile that holds element i of dw; 0 where the only part has written dw. Each thread of the sum
// asks, so the answers for the first column tiles are in a table.
struct WgradRanges {
  static constexpr int kTabled = 128;
  WgradWgmmaShape g;
  int span;
  FastDivisor by_columns, by_c, by_tile_boxes;
  uint16_t tabled[kTabled];
  WgradRanges(const WgradWgmmaShape& shape, int boxes_span)
      : g(shape), span(boxes_span), by_columns(g.columns), by_c(g.c), by_tile_boxes(g.tile_boxes) {
    for (int i = 0; i < kTabled; ++i) {
      tabled[i] = static_cast<uint16_t>(i < g.column_tiles ? wgrad_tile_parts(g, i) : 0);
    }
  }
  __device__ __forceinline__ int operator()(int i) const {
    const int column = i - by_columns.divide(i) * g.columns, tap = by_c.divide(column);
    const int slice = (column - tap * g.c) / 32 >> (span == 64 ? 1 : 0);
    const int tile = by_tile_boxes.divide(tap * g.slices + slice);
    const int parts = tile < kTabled ? tabled[tile] : wgrad_tile_parts(g, tile);
    return parts > 1 ? parts : 0;
  }
};

// What a block does, or does next.
struct WgradWork {
  WgradWindow window;
  int first_k, first_box;
  int part, first_step, steps;
  int rank;         // in the cluster
  int team, group;  // with even shares
};

// A block's part of work.group, with even shares.
template <class Config>
__device__ __forceinline__ void wgrad_take_group(WgradWork& work, const WgradWgmmaShape& g) {
  const int member = blockIdx.x % (g.row_tiles * g.group_tiles), first = g.starts[work.group];
  work.first_k = member % g.row_tiles * Config::kBM;
  work.first_box = (work.group * g.group_tiles + member / g.row_tiles) * Config::kBBoxes;
  work.window = wgrad_window(g, work.first_box);
  work.window.parts = wgrad_group_parts(g, work.group);
  work.part = work.team - wgrad_team(g, first);
  work.first_step = max(wgrad_share(g, work.team) - first, 0);
  work.steps = min(wgrad_share(g, work.team + 1), g.starts[work.group + 1]) - first - work.first_step;
}

// Goes on to the block's next part, if there is one.
template <class Config>
__device__ __forceinline__ bool wgrad_next(WgradWork& work, const WgradWgmmaShape& g) {
  if (g.teams == 0 || ++work.group == g.groups) return false;
  if (g.starts[work.group] >= wgrad_share(g, work.team + 1)) return false;
  wgrad_take_group<Config>(work, g);
  return true;
}

// Blocks go through the parts that all tiles have, in one through the column tiles, in one through the row
// tiles: neighbours, which run at the same time, read the same pixels and share what L2 sends. Then come the
// parts that only longer column tiles have, tile by tile. A cluster takes the place of a block. With even
// shares a team's blocks are neighbours.
template <class Config>
__device__ __forceinline__ WgradWork wgrad_work(const WgradWgmmaShape& g) {
  WgradWork work = {};
  if (g.teams) {
    work.team = blockIdx.x / (g.row_tiles * g.group_tiles);
    while (g.starts[work.group + 1] <= wgrad_share(g, work.team)) ++work.group;
    wgrad_take_group<Config>(work, g);
    return work;
  }
  const int tiles = g.row_tiles * g.column_tiles, shared = g.common_parts * tiles;
  int block = blockIdx.x / g.pair;
  work.rank = blockIdx.x % g.pair;
  if (block < shared) {
    work.part = block / tiles;
    work.first_box = block % tiles / g.row_tiles * Config::kBBoxes;
    work.window = wgrad_window(g, work.first_box);
    block %= tiles;
  } else {
    block -= shared;
    for (;; work.first_box += Config::kBBoxes) {
      work.window = wgrad_window(g, work.first_box);
      const int blocks = (work.window.parts - g.common_parts) * g.row_tiles;
      if (block < blocks) break;
      block -= blocks;
    }
    work.part = g.common_parts + block / g.row_tiles;
  }
  work.first_k = block % g.row_tiles * Config::kBM;
  const long long steps = work.window.steps;
  const int share = work.part * g.pair + work.rank, shares = work.window.parts * g.pair;
  work.first_step = static_cast<int>(steps * share / shares);
  work.steps = static_cast<int>(steps * (share + 1) / shares) - work.first_step;
  return work;
}

}  // namespace kiln
