// What the tma_tile kernels of depthwise_conv2d share on the device: the ring of stages, and what a thread
// owns.
//
// A block is persistent: it belongs to one slice of channels and takes every g.blocks-th tile of it, in the
// stages of its ring in turn. A stage has two barriers and a counter. Fill f of a stage, f = 0, 1, .., is
// phase f of both: of `full` (one arrival, by the thread that starts the copies, and their bytes), for which
// readers wait with parity f & 1, and of `empty` (one arrival a warp that has read it). The counter tells
// which warp is the last, and that one starts fill f+1: no warp is kept for copying, and none waits for an
// empty stage. Nobody can be a whole phase behind, since fill f+1 begins after all warps are done with fill
// f.
#pragma once

#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.h"

namespace kiln {

namespace {

constexpr int kTileWarps = kTmaTileThreads / 32;

// The first pixel of a tile.
struct TileCorner {
  int n, row, column;
  __device__ __forceinline__ TileCorner(const TmaTileShape& g, int index) {
    const int rest = index / g.column_tiles, images = rest / g.row_tiles;
    column = (index - rest * g.column_tiles) * g.columns;
    row = (rest - images * g.row_tiles) * g.rows;
    n = images * g.images;
  }
};

// A block's walk over its tiles. Shared memory: the stages from a multiple of 128 bytes on, then each
// stage's barriers and counter.
struct TileRing {
  const CUtensorMap *source, *swept;  // swept: null where it is not loaded
  unsigned char* stages;
  uint32_t address;  // of stages
  int index;         // of the current tile in the block's slice of channels
  int channel;       // the slice's first
  int stage = 0;
  uint32_t parity = 0;

  // All threads of the block. Starts the first fills.
  __device__ __forceinline__ TileRing(unsigned char* raw, const TmaTileShape& g, const CUtensorMap* source,
                                      const CUtensorMap* swept)
      : source(source), swept(swept) {
    const uint32_t start = smem_address(raw);
    address = (start + 127) / 128 * 128;
    stages = raw + (address - start);
    index = static_cast<int>(blockIdx.x) / g.slices;
    channel = (static_cast<int>(blockIdx.x) - index * g.slices) * g.channels;
    if (threadIdx.x == 0) {
      for (int i = 0; i < g.stages; ++i) {
        mbarrier_init(full(g, i), 1);
        mbarrier_init(empty(g, i), kTileWarps);
        *counter(g, i) = 0;
      }
      fence_barrier_init();
      for (int i = 0; i < g.stages; ++i) fill(g, i, index + i * g.blocks);
    }
    __syncthreads();  // barriers and counters are initialised
  }

  __device__ __forceinline__ uint32_t full(const TmaTileShape& g, int i) const {
    return address + g.control_at + kTmaTileControlBytes * i;
  }
  __device__ __forceinline__ uint32_t empty(const TmaTileShape& g, int i) const { return full(g, i) + 8; }
  __device__ __forceinline__ unsigned* counter(const TmaTileShape& g, int i) const {
    return reinterpret_cast<unsigned*>(stages + g.control_at + kTmaTileControlBytes * i + 16);
  }

  // Starts the copies of a tile, if it exists, into stage i.
  __device__ __forceinline__ void fill(const TmaTileShape& g, int i, int tile) const {
    if (tile >= g.tiles) return;
    const TileCorner at(g, tile);
    const uint32_t to = address + i * g.stage_bytes, barrier = full(g, i);
    mbarrier_arrive_expect(barrier, g.load_bytes);
    tma_load_4d(to, source, barrier, channel, at.column * g.step + g.origin_w, at.row * g.step + g.origin_h,
                at.n);
    if (swept) tma_load_4d(to + g.swept_at, swept, barrier, channel, at.column, at.row, at.n);
  }

  __device__ __forceinline__ bool done(const TmaTileShape& g) const { return index >= g.tiles; }
  // Waits for the current tile. All threads may then read it.
  __device__ __forceinline__ const unsigned char* wait(const TmaTileShape& g) const {
    mbarrier_wait(full(g, stage), parity);
    return stages + stage * g.stage_bytes;
  }
  // All threads of a warp: the warp has read the current tile.
  __device__ __forceinline__ void next(const TmaTileShape& g) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive(empty(g, stage));
      if (atomicInc(counter(g, stage), kTileWarps - 1) == kTileWarps - 1) {  // and begins at 0 again
        mbarrier_wait(empty(g, stage), parity);  // for memory's sake: all warps' reads come before the fill
        fill(g, stage, index + g.stages * g.blocks);
      }
    }
    __syncwarp();
    index += g.blocks;
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
};

// What a thread owns in every tile: a pair of channels, a strip of columns, a group of rows of one
// image. Pairs vary fastest over threads.
struct TileTask {
  bool works;
  int c;                   // first channel, of all
  int pair, task, tasks;   // in the slice; of the tile's tasks
  int column, row, image;  // first pixel, from the tile's corner
  int rows;                // of the tile

  __device__ __forceinline__ TileTask(const TmaTileShape& g, int strip_columns, int first_channel) {
    const int t = static_cast<int>(threadIdx.x);
    task = t / g.pairs;
    pair = t - task * g.pairs;
    tasks = g.strips * g.groups * g.images;
    const int rest = task / g.strips;
    image = rest / g.groups;
    column = (task - rest * g.strips) * strip_columns;
    row = (rest - image * g.groups) * g.group_rows;
    c = first_channel + 2 * pair;
    rows = min(g.group_rows, g.rows - row);
    works = task < tasks && c < g.c && rows > 0;
  }
  // Rows of the task in the tile at `at`: 0 where it lies outside of the map.
  __device__ __forceinline__ int rows_at(const TmaTileShape& g, const TileCorner& at) const {
    return at.n + image < g.n ? min(rows, g.height - at.row - row) : 0;
  }
};

// kCount neighbouring pixels of a row of a tile, pixel_bytes apart.
template <class T, int kCount>
__device__ __forceinline__ void load_tile_row(ChannelPair<T> (&to)[kCount], const unsigned char* row,
                                              int pixel_bytes) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = *reinterpret_cast<const ChannelPair<T>*>(row + i * pixel_bytes);
}

// The rows of x under a thread's strip of a tile, as fwd and wgrad walk down them. Everything but the numbers
// is indexed by constants: registers.
template <class T, class Config>
struct SourceWindow {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kInputs = Config::kInputs;

  float2 rows[kR][kInputs];               // x row i of the task is in slot i % kR
  ChannelPair<T> next[kStride][kInputs];  // the rows that the next step brings
  const unsigned char* x;                 // the x row after them, in shared memory
  int x_pixel, x_row;                     // bytes from one to the next

  __device__ __forceinline__ void load_next() {
#pragma unroll
    for (int e = 0; e < kStride; ++e) {
      load_tile_row(next[e], x, x_pixel);
      x += x_row;
    }
  }

  // The rows above those that the first step brings.
  __device__ __forceinline__ void load_above() {
#pragma unroll
    for (int i = 0; i < kR - kStride; ++i) {
      ChannelPair<T> row[kInputs];
      load_tile_row(row, x, x_pixel);
      x += x_row;
#pragma unroll
      for (int k = 0; k < kInputs; ++k) rows[i][k] = row[k].value();
    }
  }

  // Puts the rows that step k brings, where k % kR == j, in the place of the oldest.
  template <int j>
  __device__ __forceinline__ void take_next() {
#pragma unroll
    for (int i = 0; i < kStride * kInputs; ++i) {
      constexpr int kFirst = j * kStride + kR - kStride;
      rows[(kFirst + i / kInputs) % kR][i % kInputs] = next[i / kInputs][i % kInputs].value();
    }
  }
};

// The taps of a pair of channels, as fp32; turned by 180 degrees where asked.
template <class T, int kR>
__device__ __forceinline__ void load_taps(float2 (&taps)[kR][kR], const T* w, int channels, int c,
                                          bool turned) {
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) {
    ChannelPair<T> tap;
    tap.load(w + (turned ? kR * kR - 1 - i : i) * channels + c);
    taps[i / kR][i % kR] = tap.value();
    keep(taps[i / kR][i % kR]);
  }
}

}  // namespace
}  // namespace kiln
