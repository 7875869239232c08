// How the product behind wgrad (conv2d_wgrad_wgmma.cuh) is shared out: which steps a column tile has, into
// how many parts they are cut, which tile and part a block takes, and how many parts an element of dw is the
// sum of. All are formulas of the shape, so that the host, the product and the sum over parts agree without
// tables.
#pragma once

#include "kernels/common/host_device.h"

namespace kiln {

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
  int part_steps;    // most steps of a part
  int common_parts;  // fewest parts of a column tile
  int pair;          // blocks of a cluster, which share a part and add up their sums: 1 or 2
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

// Parts of the tile that holds element i of dw; 0 where the only part has written dw.
struct WgradRanges {
  WgradWgmmaShape g;
  int span;
  __device__ __forceinline__ int operator()(int i) const {
    const int column = i % g.columns, box = column / g.c * g.slices + column % g.c / span;
    const int parts = wgrad_window(g, box / g.tile_boxes * g.tile_boxes).parts;
    return parts > 1 ? parts : 0;
  }
};

// What a block does.
struct WgradWork {
  WgradWindow window;
  int first_k, first_box;
  int part, first_step, steps;
  int rank;  // in the cluster
};

// Blocks go through the parts that all tiles have, in one through the column tiles, in one through the row
// tiles: neighbours, which run at the same time, read the same pixels and share what L2 sends. Then come the
// parts that only longer column tiles have, tile by tile. A cluster takes the place of a block.
template <class Config>
__device__ __forceinline__ WgradWork wgrad_work(const WgradWgmmaShape& g) {
  WgradWork work = {};
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
