// How the fast batchnorm kernels cover an [M, C] matrix (M = N*H*W rows of C channels).
//
// A block has kTileThreads threads: `lanes` of them along the channels, each owning V neighbouring ones as
// one 16-byte access, times `block_rows` down the rows; what is left over idles. With at most 32 lanes a
// block reads runs of 512 bytes, or whole neighbouring rows where C is small. `tiles` blocks lie side by side
// along the channels, `chunks` down the rows. A thread keeps its channels from its first row to its last, so
// everything that belongs to a channel stays in registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {

constexpr int kTileThreads = 256;

struct BatchnormTile {
  int rows, channels;     // M, C
  int lanes, block_rows;  // lanes * block_rows <= kTileThreads
  int tiles, chunks;      // blocks along the channels, down the rows
  unsigned blocks() const { return static_cast<unsigned>(tiles) * static_cast<unsigned>(chunks); }
  __host__ __device__ int chunk_begin(int chunk) const {
    const int extra = rows % chunks;
    return chunk * (rows / chunks) + (chunk < extra ? chunk : extra);
  }
};

// About `blocks` blocks, fewer where a thread would have under `thread_rows` rows. C must be a multiple of V.
template <int V>
BatchnormTile make_batchnorm_tile(const BatchnormProblem& p, int blocks, int thread_rows) {
  BatchnormTile t{};
  const int vectors = p.c / V;
  t.rows = static_cast<int>(p.per_channel());
  t.channels = p.c;
  t.tiles = ceil_div(vectors, 32);
  t.lanes = ceil_div(vectors, t.tiles);
  // Two neighbours of four channels make a byte of the mask: they are in one warp where lanes is even.
  if (V == 4 && vectors % 2 == 0) t.lanes += t.lanes % 2;
  t.block_rows = kTileThreads / t.lanes;
  const long long most = ceil_div<long long>(t.rows, static_cast<long long>(t.block_rows) * thread_rows);
  t.chunks = static_cast<int>(std::max(1LL, std::min<long long>(blocks / t.tiles, most)));
  return t;
}

// What is common to the models of the times of kernels whose blocks hold their part of the tensor, one a
// multiprocessor; fitted to times on an H100, in microseconds and MiB.
constexpr double kTileUs = 0.42;       // a MiB that is read or written once
constexpr double kTileWasteUs = 0.24;  // a MiB of a line that another block wants, of what is read twice

inline double batchnorm_mib(const BatchnormProblem& p) {
  return static_cast<double>(p.per_channel()) * p.c * static_cast<double>(size_of(p.dtype)) / 1048576;
}

// Bytes of neighbouring tiles in the 128-byte lines of a row's piece, in pieces: about what is fetched twice.
inline double batchnorm_line_waste(const BatchnormProblem& p, const BatchnormTile& t) {
  if (t.tiles == 1) return 0;
  const int piece = 16 * t.lanes;
  const int aligned = std::gcd(std::gcd(piece, p.c * static_cast<int>(size_of(p.dtype))), 128);
  return static_cast<double>(128 - aligned) / piece;
}

// Microseconds of `mib` MiB: with part of the multiprocessors idle the others come nearer to their limits.
inline double batchnorm_mib_us(const BatchnormProblem& p, const Device& device, const BatchnormTile& t,
                               double mib) {
  const double lanes = p.c * static_cast<double>(size_of(p.dtype)) / 16;
  return kTileUs * mib / std::sqrt(lanes * t.chunks / (t.lanes * std::max(1, device.multiprocessors)));
}

// What one thread of block `block` owns.
struct BatchnormSlice {
  int tile, chunk;  // the block's
  int row;          // of the block's threads down the rows
  int channel;      // first of V
  int first_row;    // of the matrix
  int count;        // rows of this thread, block_rows apart; 0 for an idle thread
  size_t first;     // element index of (first row, channel)
  size_t step;      // elements from one row of this thread to its next
};

template <int V>
__device__ __forceinline__ BatchnormSlice batchnorm_slice(const BatchnormTile& t, unsigned block) {
  BatchnormSlice s;
  s.tile = static_cast<int>(block % t.tiles);
  s.chunk = static_cast<int>(block / t.tiles);
  s.row = static_cast<int>(threadIdx.x) / t.lanes;
  const unsigned vector = static_cast<unsigned>(s.tile) * t.lanes + threadIdx.x % t.lanes;
  const bool owns = s.row < t.block_rows && vector < static_cast<unsigned>(t.channels / V);
  s.channel = owns ? static_cast<int>(vector) * V : 0;
  const int begin = t.chunk_begin(s.chunk), rows = t.chunk_begin(s.chunk + 1) - begin;
  s.count = owns && s.row < rows ? (rows - s.row - 1) / t.block_rows + 1 : 0;
  s.first_row = begin + s.row;
  s.first = static_cast<size_t>(s.first_row) * t.channels + s.channel;
  s.step = static_cast<size_t>(t.block_rows) * t.channels;
  return s;
}

// V neighbouring channels of a [C] array; `from` must be aligned to min(V, 4) floats.
template <int V>
__device__ __forceinline__ void load_channels(const float* __restrict__ from, float (&to)[V]) {
  constexpr int W = V < 4 ? V : 4;
#pragma unroll
  for (int i = 0; i < V; i += W) {
    const auto part = Vec<float, W>::load(from + i);
#pragma unroll
    for (int j = 0; j < W; ++j) to[i + j] = part[j];
  }
}

template <int V>
__device__ __forceinline__ void store_channels(const float (&from)[V], float* __restrict__ to) {
  constexpr int W = V < 4 ? V : 4;
#pragma unroll
  for (int i = 0; i < V; i += W) {
    Vec<float, W> part;
#pragma unroll
    for (int j = 0; j < W; ++j) part.v[j] = from[i + j];
    part.store(to + i);
  }
}

// V rows of a thread, at most kRows at once: `rows[u]` is read where u < left.
template <class T, int V, int kRows, bool kFull>
__device__ __forceinline__ void load_rows(const T* __restrict__ from, ptrdiff_t step, int left,
                                          Vec<T, V> (&rows)[kRows]) {
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    if (kFull || u < left) rows[u] = Vec<T, V>::load(from + u * step);
  }
}

// What the normalisation needs of a thread's channels.
template <int V>
struct Channels {
  float mean[V], scale[V], beta[V];

  __device__ __forceinline__ void load(const float* gamma, const float* beta_c, const float* saved_mean,
                                       const float* saved_rstd, int channel) {
    float rstd[V];
    load_channels(saved_mean + channel, mean);
    load_channels(gamma + channel, scale);
    load_channels(beta_c + channel, beta);
    load_channels(saved_rstd + channel, rstd);
#pragma unroll
    for (int v = 0; v < V; ++v) scale[v] = batchnorm_scale(scale[v], rstd[v]);
  }
  __device__ __forceinline__ float pre(int v, float centred) const {
    return batchnorm_pre(centred, scale[v], beta[v]);
  }
};

// What follows the normalisation, as kernels take it.
struct BatchnormActivation {
  BatchnormAct act;
  BatchnormClamp clamp;
};
inline BatchnormActivation batchnorm_activation(const BatchnormProblem& p) {
  return {p.act, batchnorm_clamp(p.act)};
}

// What a forward with given statistics writes besides y; all null where the statistics are no news.
struct BatchnormStatistics {
  float* saved_rstd;    // [C]
  float* running_mean;  // [C], in and out
  float* running_var;   // [C], in and out
  float momentum, unbiased;
};

// V channels from `channel` on: what the normalisation needs of them.
template <int V>
__device__ __forceinline__ void load_given(Channels<V>& ch, const float* __restrict__ gamma,
                                           const float* __restrict__ beta, const float* __restrict__ mean,
                                           const float* __restrict__ spread, int channel, float eps,
                                           bool is_variance) {
  float spread_c[V];
  load_channels(mean + channel, ch.mean);
  load_channels(gamma + channel, ch.scale);
  load_channels(beta + channel, ch.beta);
  load_channels(spread + channel, spread_c);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    ch.scale[v] = batchnorm_scale(ch.scale[v], is_variance ? batchnorm_rstd(spread_c[v], eps) : spread_c[v]);
  }
}

// The statistics, where they are wanted: by the blocks of the last chunk, which is the first to run where a
// kernel walks backwards, a channel a thread.
template <int V>
__device__ __forceinline__ void store_statistics(const BatchnormStatistics& out,
                                                 const float* __restrict__ mean,
                                                 const float* __restrict__ var, const BatchnormTile& tile,
                                                 unsigned block, float eps) {
  if (!out.saved_rstd || static_cast<int>(block / tile.tiles) != tile.chunks - 1) return;
  const int width = tile.lanes * V, c = static_cast<int>(block % tile.tiles * width + threadIdx.x);
  if (static_cast<int>(threadIdx.x) >= width || c >= tile.channels) return;
  const float kept = 1.0f - out.momentum;
  out.saved_rstd[c] = batchnorm_rstd(var[c], eps);
  out.running_mean[c] = kept * out.running_mean[c] + out.momentum * mean[c];
  out.running_var[c] = kept * out.running_var[c] + out.momentum * (var[c] * out.unbiased);
}

struct BatchnormNormalise {
  const void* x;         // [N,H,W,C] dtype
  const void* gamma;     // [C] fp32
  const void* beta;      // [C] fp32
  const void* mean;      // [C] fp32
  const void* spread;    // [C] fp32, rstd, or the variance where is_variance
  const void* residual;  // [N,H,W,C] dtype, null without
  void* y;               // [N,H,W,C] dtype
  void* mask = nullptr;  // [N,H,W,ceil(C/8)], null where it is not wanted
  void* arg = nullptr;   // [N,H/2,W/2,ceil(C/4)], null where it is not wanted
  bool is_variance = false;
  // Written too where they are not null: see BatchnormStatistics.
  void* saved_rstd = nullptr;
  void* running_mean = nullptr;
  void* running_var = nullptr;
};

inline BatchnormStatistics batchnorm_statistics(const BatchnormProblem& p, const BatchnormNormalise& a) {
  return {.saved_rstd = static_cast<float*>(a.saved_rstd),
          .running_mean = static_cast<float*>(a.running_mean),
          .running_var = static_cast<float*>(a.running_var),
          .momentum = p.momentum,
          .unbiased = static_cast<float>(batchnorm_unbiased(p.per_channel()))};
}

// y = act((x - mean) * gamma * rstd + beta + residual), or with pool its maxima, and the mask or arg,
// enqueued.
void launch_batchnorm_normalise(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a,
                                Stream stream);
// Whether launch_batchnorm_normalise takes the problem.
inline Support batchnorm_normalise_supports(const BatchnormProblem& p) {
  return Support::require(!p.pool || p.c % (16 / static_cast<int>(size_of(p.dtype))) == 0,
                          "with pool, channels must be a multiple of 16 bytes");
}
// Its part with pool.
void launch_batchnorm_windows(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a,
                              Stream stream);

}  // namespace kiln
