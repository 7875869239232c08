// How the vectorised kernels of global_avg_pool and global_max_pool lie over an image, and how a thread walks
// over its pixels.
//
// A block owns `columns` vectors of channels of one image, as `columns` x `rows` threads; a vector is V
// channels, 16 bytes where c is a multiple of that, else one channel. A thread owns one vector in every
// rows-th pixel, so that a row of threads moves contiguous memory.
#pragma once

#include <bit>

#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d.h"

namespace kiln {

constexpr int kGlobalPoolThreads = 256;  // at most
constexpr int kGlobalPoolBatch = 8;      // pixels a thread has in flight
constexpr int kGlobalPoolTailBatch = 4;  // the same for its last pixels

// Columns and rows are powers of two.
struct GlobalPoolLayout {
  unsigned pixels, rows;  // unsigned: a step beyond the last pixel does not overflow
  int channels, columns_log2;
  int chunks;  // blocks for one image
  unsigned blocks, threads;
};

// The owner of a thread's work. `inside`: its vector exists (the last block of an image may be partly empty).
struct GlobalPoolOwner {
  size_t image;  // n
  int chunk_channel, channel;
  unsigned row;
  bool inside;
};

template <int V>
__device__ __forceinline__ GlobalPoolOwner global_pool_owner(const GlobalPoolLayout& l) {
  const int n = static_cast<int>(blockIdx.x) / l.chunks;
  const int chunk = static_cast<int>(blockIdx.x) - n * l.chunks;
  const int column = static_cast<int>(threadIdx.x) & ((1 << l.columns_log2) - 1);
  const int begin = (chunk << l.columns_log2) * V;
  const int channel = begin + column * V;
  return {static_cast<size_t>(n), begin, channel, threadIdx.x >> l.columns_log2, channel < l.channels};
}

// take(vector, pixel, counts) for kCount pixels, l.rows apart, their loads in flight together. kTail: those
// beyond the image are its last pixel again and do not count.
template <class T, int V, int kCount, bool kTail, class Take>
__device__ __forceinline__ void take_pixels(const T* __restrict__ first,  // x[n, 0, channel]
                                            const GlobalPoolLayout& l, unsigned pixel, Take& take) {
  Vec<T, V> batch[kCount];
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    const unsigned at = kTail ? min(pixel + b * l.rows, l.pixels - 1) : pixel + b * l.rows;
    batch[b] = Vec<T, V>::load(first + static_cast<size_t>(at) * l.channels);
  }
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    const unsigned at = pixel + b * l.rows;
    take(batch[b], kTail ? min(at, l.pixels - 1) : at, !kTail || at < l.pixels);
  }
}

// The same for every rows-th pixel from the owner's row on, in ascending order.
template <class T, int V, class Take>
__device__ __forceinline__ void take_all_pixels(const T* __restrict__ x,  // [N,H*W,C]
                                                const GlobalPoolLayout& l, const GlobalPoolOwner& o,
                                                Take take) {
  const T* first = x + o.image * l.pixels * l.channels + o.channel;
  unsigned pixel = o.row;
  for (; pixel + (kGlobalPoolBatch - 1) * l.rows < l.pixels; pixel += kGlobalPoolBatch * l.rows) {
    take_pixels<T, V, kGlobalPoolBatch, false>(first, l, pixel, take);
  }
  for (; pixel < l.pixels; pixel += kGlobalPoolTailBatch * l.rows) {
    take_pixels<T, V, kGlobalPoolTailBatch, true>(first, l, pixel, take);
  }
}

// Columns: the widest power of two up to 32 that divides the vectors of a pixel, where that is 4 (64 bytes)
// or more; else enough for all of them, up to 32.
template <class Problem>
GlobalPoolLayout make_global_pool_layout(const Problem& p, int v) {
  const unsigned vectors = static_cast<unsigned>(p.c / v);
  unsigned columns = std::min(32u, vectors & -vectors);
  if (columns < 4) columns = std::bit_ceil(std::min(32u, vectors));
  const unsigned pixels = static_cast<unsigned>(p.h) * p.w;
  const unsigned rows = std::min(kGlobalPoolThreads / columns, std::bit_ceil(pixels));
  const int chunks = static_cast<int>(ceil_div(vectors, columns));
  return {.pixels = pixels,
          .rows = rows,
          .channels = p.c,
          .columns_log2 = std::countr_zero(columns),
          .chunks = chunks,
          .blocks = grid_for(1LL * p.n * chunks, 1),
          .threads = rows * columns};
}

}  // namespace kiln
