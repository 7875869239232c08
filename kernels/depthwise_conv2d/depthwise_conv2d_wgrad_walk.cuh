// What a thread of depthwise_conv2d's wgrad does before the block's sums meet: it walks over the pixels of
// its pair of channels, strip of columns and tasks (depthwise_conv2d_tile.cuh) and keeps R*R pairs of sums.
#pragma once

#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4;  // dy columns of a thread

template <class T, int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // x columns over the strip
  static constexpr int kRing = (kR + kStride - 1) / kStride;
  static constexpr int kBuffers = kR == 3 && sizeof(T) == 2 ? kRing : 1;
  static constexpr bool kTight = kR == 5 && kStride == 1 && sizeof(T) == 2;      // short of registers
  static constexpr int kBlocks = kTight || (kR == 3 && sizeof(T) == 2) ? 2 : 1;  // a multiprocessor
  // The newest dy rows are in registers, older ones in shared memory, and there the sum for dbias too.
  static constexpr int kRegisterRows = kTight ? 1 : kRing;
  static constexpr int kSharedPairs = kTight ? kRing * kColumns + 1 : kR;  // a thread
  static_assert(kRing % kBuffers == 0, "each step of a round has its own buffer");
  static_assert(kInputs <= 16, "the columns' bits share a word with those of dy");
};

struct Shape {
  int h, w, c, p, q;
  int pad_h, pad_w;
  int rows, row_tasks;            // dy rows of a task, tasks of an image
  int steps;                      // of a task, a multiple of the ring
  int sums;                       // rows of C sums: R*R, and one for dbias
  unsigned pixel, x_row, dy_row;  // bytes from one to the next
  bool bias;
  DepthwiseTile tile;
};

template <class T>
struct Inputs {
  const T* x;   // [N,H,W,C]
  const T* dy;  // [N,P,Q,C]
};

// Walks over the steps of a thread's tasks, ahead of the arithmetic.
template <class T, class Config>
struct Loader {
  int x_first, dy_first;  // elements before the thread's first column and channel in a row
  unsigned inside;        // columns of x inside the image; 16 bits up, of dy
  int task, step;
  const T *x_at, *dy_at;   // there, in the rows of step 0 of the task; may lie outside
  int count, top, bottom;  // dy rows, and x rows of the task that exist: top <= row < bottom

  __device__ __forceinline__ void enter(const Shape& g, const Inputs<T>& from) {
    step = 0;
    const int n = task / g.row_tasks, p0 = (task - n * g.row_tasks) * g.rows;
    const int h0 = p0 * Config::kStride - g.pad_h;
    count = task < g.tile.tasks ? min(g.rows, g.p - p0) : 0;
    top = max(0, -h0);
    bottom = count > 0 ? min(g.h - h0, (count - 1) * Config::kStride + Config::kR) : 0;
    x_at = offset_by(from.x + x_first, (static_cast<ptrdiff_t>(n) * g.h + h0) * g.x_row);
    dy_at = offset_by(from.dy + dy_first, (static_cast<ptrdiff_t>(n) * g.p + p0) * g.dy_row);
  }
  __device__ __forceinline__ void next(const Shape& g, const Inputs<T>& from) {
    if (++step == g.steps) {
      task += g.tile.blocks_t * g.tile.lanes_t;
      enter(g, from);
    }
  }
  __device__ __forceinline__ void load_dy(PixelRow<T, kColumns>& row, const Shape& g) const {
    if (step < count) {
      row.load(offset_by(dy_at, static_cast<ptrdiff_t>(g.dy_row) * step), g.pixel, inside >> 16);
    } else {
      row.clear();
    }
  }
  // Returns whether the row exists; if not it keeps what it held.
  __device__ __forceinline__ bool load_x(PixelRow<T, Config::kInputs>& row, int e, const Shape& g) const {
    const int i = step * Config::kStride + e;
    const bool exists = i >= top && i < bottom;
    if (exists) row.load(offset_by(x_at, static_cast<ptrdiff_t>(g.x_row) * i), g.pixel, inside);
    return exists;
  }
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Walk {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kRing = Config::kRing;
  static constexpr int kBuffers = Config::kBuffers, kInputs = Config::kInputs;

  Loader<T, Config> loader;
  PixelRow<T, kColumns> dy[kBuffers];
  PixelRow<T, kInputs> x[kBuffers][kStride];
  bool exists[kBuffers][kStride];
  float2 ring[kRing][kColumns];
  float2 sum[kR][kR];
  float2 bias_sum;
  unsigned shared_ring;  // shared memory address of the thread's own float2, kThreads float2 to its next

  template <int b>
  __device__ __forceinline__ void load_first(const Shape& g, const Inputs<T>& from) {
    if (b > 0) loader.next(g, from);
    dy[b].clear();
    loader.load_dy(dy[b], g);
#pragma unroll
    for (int e = 0; e < kStride; ++e) {
      x[b][e].clear();
      exists[b][e] = loader.load_x(x[b][e], e, g);
    }
  }

  static __host__ __device__ constexpr unsigned shared_at(int slot, int t) {
    return (slot * kColumns + t) * kThreads * static_cast<unsigned>(sizeof(float2));
  }

  // The dy row that meets the step's x rows under filter row r; the step's own dy row is in slot j.
  template <int j, int r>
  __device__ __forceinline__ void dy_row(float2 (&row)[kColumns]) const {
    constexpr int kSlot = (j - r / kStride + kRing) % kRing;
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      if constexpr (r / kStride < Config::kRegisterRows) {
        row[t] = ring[kSlot][t];
      } else {
        row[t] = load_own(shared_ring + shared_at(kSlot, t));
      }
    }
  }

  // An x row under filter rows r, r + kStride, ...
  template <int j, int r>
  __device__ __forceinline__ void add_row(const float2 (&x_row)[kInputs]) {
    float2 dys[kColumns];
    dy_row<j, r>(dys);
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        const int s = i - t * kStride;
        if (s >= 0 && s < kR) fma_pair(sum[r][s], x_row[i], dys[t]);
      }
    }
    if constexpr (r + kStride < kR) add_row<j, r + kStride>(x_row);
  }

  template <int j, int e>
  __device__ __forceinline__ void take_x(const Shape& g) {
    constexpr int b = j % kBuffers;
    float2 row[kInputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      row[i] = x[b][e].at[i].value();
      if (Config::kTight) keep(row[i]);
    }
    const bool add = exists[b][e];
    exists[b][e] = loader.load_x(x[b][e], e, g);
    if (add) add_row<j, e>(row);
    if constexpr (e + 1 < kStride) take_x<j, e + 1>(g);
  }

  template <int j>
  __device__ __forceinline__ void step(const Shape& g, const Inputs<T>& from) {
    constexpr int b = j % kBuffers;
    loader.next(g, from);
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      ring[j][t] = dy[b].at[t].value();
      if (Config::kRegisterRows < kRing) store_own(shared_ring + shared_at(j, t), ring[j][t]);
    }
    loader.load_dy(dy[b], g);
    if (g.bias) {
      float2 total = Config::kTight ? load_own(shared_ring + shared_at(kRing, 0)) : bias_sum;
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        total.x += ring[j][t].x;
        total.y += ring[j][t].y;
      }
      if (Config::kTight) {
        store_own(shared_ring + shared_at(kRing, 0), total);
      } else {
        bias_sum = total;
      }
    }
    take_x<j, 0>(g);
  }

  template <int... j>
  __device__ __forceinline__ void walk(const Shape& g, const Inputs<T>& from, int tasks,
                                       std::integer_sequence<int, j...>) {
    const int rounds = tasks * (g.steps / kRing);
    for (int i = 0; i < rounds; ++i) (step<j>(g, from), ...);
  }
  template <int... b>
  __device__ __forceinline__ void start(const Shape& g, const Inputs<T>& from,
                                        std::integer_sequence<int, b...>) {
    (load_first<b>(g, from), ...);
  }
};

}  // namespace
}  // namespace kiln
