// How the batchnorm kernels behind which a pool stands cover the 2x2 cells of an [N,H,W,C] tensor.
//
// A cell is a window of the pool, or, with `rest`, what is left of one at the end of an odd map. A block's
// threads lie as batchnorm_tile.cuh says, with cells for rows; but a thread's cells are a whole grid apart,
// so that at any time the grid is at one place of the tensor: a kernel that walks backwards behind one that
// walked forwards meets in L2 what that one read last.
#pragma once

#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/fast_divisor.cuh"

namespace kiln {

struct BatchnormCells {
  BatchnormTile tile;  // its rows are cells
  int height, width;   // H, W
  int rows, columns;   // cells of an image: ceil(H/2) x ceil(W/2) with `rest`, else H/2 x W/2
  FastDivisor by_rows, by_columns;
};

// About `blocks` blocks. `rest`: with the cells that are no whole windows. C must be a multiple of V.
template <int V>
BatchnormCells make_batchnorm_cells(const BatchnormProblem& p, int blocks, bool rest) {
  BatchnormCells cells{};
  BatchnormProblem image = p;
  image.h = cells.rows = (p.h + rest) / 2;
  image.w = cells.columns = (p.w + rest) / 2;
  cells.tile = make_batchnorm_tile<V>(image, blocks, 1);
  cells.height = p.h;
  cells.width = p.w;
  cells.by_rows = FastDivisor(static_cast<unsigned>(cells.rows));
  cells.by_columns = FastDivisor(static_cast<unsigned>(cells.columns));
  return cells;
}

// What one thread of block `block` owns: cells first, first + step, ...
struct BatchnormCellSlice {
  int channel;  // first of V
  int first, step;
  int count;  // 0 for an idle thread

  template <int V>
  __device__ __forceinline__ static BatchnormCellSlice of(const BatchnormTile& t, unsigned block) {
    BatchnormCellSlice s;
    const int tile = static_cast<int>(block % t.tiles), chunk = static_cast<int>(block / t.tiles);
    const int row = static_cast<int>(threadIdx.x) / t.lanes;
    const unsigned vector = static_cast<unsigned>(tile) * t.lanes + threadIdx.x % t.lanes;
    const bool owns = row < t.block_rows && vector < static_cast<unsigned>(t.channels / V);
    s.channel = owns ? static_cast<int>(vector) * V : 0;
    s.first = chunk * t.block_rows + row;
    s.step = t.chunks * t.block_rows;
    s.count = owns && s.first < t.rows ? (t.rows - s.first - 1) / s.step + 1 : 0;
    return s;
  }
};

// Cell (row, column) of image n.
struct BatchnormCell {
  int n, row, column;

  __device__ __forceinline__ static BatchnormCell of(const BatchnormCells& cells, int index) {
    const int line = cells.by_columns.divide(index), n = cells.by_rows.divide(line);
    return {n, line - n * cells.rows, index - line * cells.columns};
  }
  // Its first pixel in [N,H,W].
  __device__ __forceinline__ unsigned pixel(const BatchnormCells& cells) const {
    return static_cast<unsigned>((n * cells.height + 2 * row) * cells.width + 2 * column);
  }
};

// Elements from a cell's first pixel to pixel k, r*2+s.
__device__ __forceinline__ unsigned batchnorm_pixel_offset(const BatchnormCells& cells, int k) {
  return static_cast<unsigned>((k / 2 * cells.width + k % 2) * cells.tile.channels);
}

// The positions of a window's V channels, 2 bits each from bit 0 on, in [N,H/2,W/2,C/4]; C is a multiple of
// V.
template <int V>
__device__ __forceinline__ unsigned load_positions(const unsigned char* __restrict__ arg, unsigned element) {
  static_assert(V == 8 || V == 4, "two bytes or one");
  if constexpr (V == 8) return *reinterpret_cast<const unsigned short*>(arg + element / 4);
  return arg[element / 4];
}
template <int V>
__device__ __forceinline__ void store_positions(unsigned bits, unsigned char* __restrict__ arg,
                                                unsigned element) {
  static_assert(V == 8 || V == 4, "two bytes or one");
  if constexpr (V == 8) {
    *reinterpret_cast<unsigned short*>(arg + element / 4) = static_cast<unsigned short>(bits);
  } else {
    arg[element / 4] = static_cast<unsigned char>(bits);
  }
}

}  // namespace kiln
