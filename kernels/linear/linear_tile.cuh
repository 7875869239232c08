// The tiled product that the three smem_tile passes of linear share: out[i,j] = sum_l A(i,l) * B(j,l).
//
// A block owns a kRows x kColumns tile of out (blockIdx.x) and a chunk of the sum (blockIdx.y); a thread owns
// a kThreadRows x kThreadColumns micro-tile in registers. Tiles of A and B, kDepth deep, are kept in shared
// memory as fp32 with l outermost, double buffered: the next tile is on its way to registers while this one
// is multiplied. Where one block for each tile would leave multiprocessors idle, the sum is split over
// blocks, each writes its partial tile to the workspace, and linear_sum_splits adds them in fixed order. FFMA
// in fp32, deterministic.
#pragma once

#include <algorithm>

#include "kernels/common/device.h"
#include "kernels/common/grid.h"
#include "kernels/common/impl.h"
#include "kernels/common/vec.cuh"
#include "kernels/linear/linear_split.h"

namespace kiln::linear_tile {

template <int kRows_, int kColumns_, int kDepth_, int kThreadRows_, int kThreadColumns_>
struct Config {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kThreadRows = kThreadRows_, kThreadColumns = kThreadColumns_;
  static constexpr int kThreadsAcross = kColumns / kThreadColumns;
  static constexpr int kThreads = kThreadsAcross * (kRows / kThreadRows);
  static_assert(kRows * kDepth % (4 * kThreads) == 0 && kColumns * kDepth % (4 * kThreads) == 0,
                "every thread loads the same number of groups of four");
};
using WideConfig = Config<64, 64, 16, 8, 4>;        // 17 KiB of shared memory
using FewColumnsConfig = Config<64, 16, 32, 4, 2>;  // fwd to at most 16 classes, 22 KiB
using FewRowsConfig = Config<16, 64, 32, 2, 4>;     // wgrad of the same, 22 KiB
constexpr int kFew = 16;

struct Shape {
  int m = 1, n = 1, l = 1;    // rows and columns of out, length of the sum
  int lda = 1, ldb = 1;       // elements from one stored row to the next
  int chunk = 1;              // of l, for each blockIdx.y; a multiple of kDepth unless there is one
  int splits = 1;             // blocks in y
  size_t partial_stride = 0;  // floats from one split's partial sums to the next: [m,n], then [m] row sums
  LinearSplit split() const { return {.rows = m, .columns = n, .count = splits}; }
};

// Shared memory of one operand: kDepth rows of kTile values, padded by one 16-byte access.
template <class C, int kTile>
using Buffers = float[2][C::kDepth][kTile + 4];

template <class C>
struct Memory {
  alignas(16) Buffers<C, C::kRows> a;
  alignas(16) Buffers<C, C::kColumns> b;
};

template <class C>
struct Sums {
  float value[C::kThreadRows][C::kThreadColumns] = {};
  float row[C::kThreadRows] = {};  // sum_l A(i,l)
};

// Four neighbours from p, of which the first `valid` exist; the others read as zero. `vector`: p is aligned
// to four elements.
template <class T>
__device__ __forceinline__ Vec<T, 4> load_four(const T* p, int valid, bool vector) {
  if (vector && valid >= 4) return Vec<T, 4>::load(p);
  Vec<T, 4> v;
#pragma unroll
  for (int e = 0; e < 4; ++e) v.v[e] = e < valid ? p[e] : T(0.0f);
  return v;
}

// One operand's tile on its way from global memory through registers to shared memory. kAlongL: stored [rows,
// l], else [l, rows].
template <class T, class C, int kTile, bool kAlongL>
struct Loader {
  static constexpr int kAcross =
      (kAlongL ? C::kDepth : kTile) / 4;  // groups of four in one stored row of the tile
  static constexpr int kGroups = kTile * C::kDepth / (4 * C::kThreads);
  Vec<T, 4> group[kGroups];

  // source: the tile's first element; rows, depth: what is left of the tensor from there.
  __device__ __forceinline__ void fetch(const T* source, int ld, int rows, int depth) {
    const int height = kAlongL ? rows : depth, width = kAlongL ? depth : rows;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int slot = g * C::kThreads + threadIdx.x;
      const int line = slot / kAcross, offset = slot % kAcross * 4;
      const int valid = line < height ? width - offset : 0;
      group[g] = load_four(source + static_cast<size_t>(line) * ld + offset, valid, ld % 4 == 0);
    }
  }

  __device__ __forceinline__ void deposit(float (&tile)[C::kDepth][kTile + 4]) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int slot = g * C::kThreads + threadIdx.x;
      const int line = slot / kAcross, offset = slot % kAcross * 4;
      Vec<float, 4> v;
#pragma unroll
      for (int e = 0; e < 4; ++e) v.v[e] = group[g][e];
      if constexpr (kAlongL) {
#pragma unroll
        for (int e = 0; e < 4; ++e) tile[offset + e][line] = v.v[e];
      } else {
        v.store(&tile[line][offset]);
      }
    }
  }
};

template <int kCount>
__device__ __forceinline__ void read_run(const float* p, float (&out)[kCount]) {
  constexpr int V = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += V) {
    const auto v = Vec<float, V>::load(p + i);
#pragma unroll
    for (int e = 0; e < V; ++e) out[i + e] = v.v[e];
  }
}

// Adds one tile's products to the thread's sums.
template <class C, bool kRowSums>
__device__ __forceinline__ void accumulate(const float (&a)[C::kDepth][C::kRows + 4],
                                           const float (&b)[C::kDepth][C::kColumns + 4], Sums<C>& sums) {
  const int row = threadIdx.x / C::kThreadsAcross * C::kThreadRows;
  const int column = threadIdx.x % C::kThreadsAcross * C::kThreadColumns;
#pragma unroll
  for (int l = 0; l < C::kDepth; ++l) {
    float av[C::kThreadRows], bv[C::kThreadColumns];
    read_run(&a[l][row], av);
    read_run(&b[l][column], bv);
#pragma unroll
    for (int i = 0; i < C::kThreadRows; ++i) {
      if constexpr (kRowSums) sums.row[i] += av[i];
#pragma unroll
      for (int j = 0; j < C::kThreadColumns; ++j) sums.value[i][j] = fmaf(av[i], bv[j], sums.value[i][j]);
    }
  }
}

// First row and column of this block's tile.
struct Origin {
  int i, j;
};
template <class C>
__device__ __forceinline__ Origin origin(const Shape& shape) {
  const int across = (shape.n - 1) / C::kColumns + 1;
  return {static_cast<int>(blockIdx.x / across) * C::kRows,
          static_cast<int>(blockIdx.x % across) * C::kColumns};
}

// The block's tile over its chunk of the sum. kAAlongL: A is stored [m,l], else [l,m]; B likewise with n.
template <class C, bool kAAlongL, bool kBAlongL, bool kRowSums, class T>
__device__ __forceinline__ Sums<C> multiply(const T* a, const T* b, const Shape& shape, Origin at,
                                            Memory<C>& memory) {
  const int first = blockIdx.y * shape.chunk, length = min(shape.chunk, shape.l - first);
  const int tiles = (length - 1) / C::kDepth + 1;
  const size_t lda = shape.lda, ldb = shape.ldb;
  a += kAAlongL ? at.i * lda + first : first * lda + at.i;
  b += kBAlongL ? at.j * ldb + first : first * ldb + at.j;
  Loader<T, C, C::kRows, kAAlongL> loader_a;
  Loader<T, C, C::kColumns, kBAlongL> loader_b;
  const auto fetch = [&](int tile) {
    const size_t l = static_cast<size_t>(tile) * C::kDepth;
    const int depth = length - tile * C::kDepth;
    loader_a.fetch(a + (kAAlongL ? l : l * lda), shape.lda, shape.m - at.i, depth);
    loader_b.fetch(b + (kBAlongL ? l : l * ldb), shape.ldb, shape.n - at.j, depth);
  };
  Sums<C> sums;
  fetch(0);
  loader_a.deposit(memory.a[0]);
  loader_b.deposit(memory.b[0]);
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    const bool more = tile + 1 < tiles;
    if (more) fetch(tile + 1);
    accumulate<C, kRowSums>(memory.a[tile % 2], memory.b[tile % 2], sums);
    // The other buffer's readers passed the last barrier; the next barrier opens it to readers.
    if (more) {
      loader_a.deposit(memory.a[(tile + 1) % 2]);
      loader_b.deposit(memory.b[(tile + 1) % 2]);
    }
    __syncthreads();
  }
  return sums;
}

// Writes the block's tile, with bias[j] added where there is one.
template <class C, class Out>
__device__ __forceinline__ void store_tile(Out* out,           // [M,N]
                                           const float* bias,  // [N] or null
                                           const Shape& shape, Origin at, const Sums<C>& sums) {
  constexpr int V = C::kThreadColumns;
  const int row = threadIdx.x / C::kThreadsAcross * C::kThreadRows;
  const int column = threadIdx.x % C::kThreadsAcross * V;
  const int rows = min(shape.m - at.i - row, C::kThreadRows), columns = shape.n - at.j - column;
  const bool whole = columns >= V && shape.n % V == 0;
#pragma unroll
  for (int i = 0; i < C::kThreadRows; ++i) {
    if (i >= rows) break;
    Out* p = out + static_cast<size_t>(at.i + row + i) * shape.n + at.j + column;
    Vec<Out, V> v;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      v.set(j, sums.value[i][j] + (bias && j < columns ? bias[at.j + column + j] : 0.0f));
    }
    if (whole) {
      v.store(p);
      continue;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j < columns) p[j] = v.v[j];
    }
  }
}

// The block's row sums, written by its first column of threads.
template <class C>
__device__ __forceinline__ void store_row_sums(float* out,  // [M]
                                               const Shape& shape, Origin at, const Sums<C>& sums) {
  if (at.j != 0 || threadIdx.x % C::kThreadsAcross != 0) return;
  const int row = threadIdx.x / C::kThreadsAcross * C::kThreadRows;
#pragma unroll
  for (int i = 0; i < C::kThreadRows; ++i) {
    if (i < shape.m - at.i - row) out[at.i + row + i] = sums.row[i];
  }
}

// Host: cuts the sum where there are fewer tiles than two for each multiprocessor.
template <class C>
Shape plan_shape(int m, int n, int l, int lda, int ldb, const Device& device) {
  constexpr long long kMostSplits = 64;
  const long long tiles = ceil_div<long long>(m, C::kRows) * ceil_div<long long>(n, C::kColumns);
  const int depth_tiles = ceil_div<long long>(l, C::kDepth);
  const long long wanted = std::clamp(2LL * device.multiprocessors / tiles, 1LL, kMostSplits);
  const int tiles_each = ceil_div<long long>(depth_tiles, std::min<long long>(wanted, depth_tiles));
  Shape shape{.m = m, .n = n, .l = l, .lda = lda, .ldb = ldb};
  shape.splits = ceil_div(depth_tiles, tiles_each);
  shape.chunk = shape.splits == 1 ? l : tiles_each * C::kDepth;
  shape.partial_stride = shape.split().stride();
  return shape;
}

template <class C>
dim3 grid(const Shape& s) {
  const long long tiles = ceil_div<long long>(s.m, C::kRows) * ceil_div<long long>(s.n, C::kColumns);
  return {static_cast<unsigned>(tiles), static_cast<unsigned>(s.splits)};
}

}  // namespace kiln::linear_tile
