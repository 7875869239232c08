// Device stages of dgrad with few channels (conv2d_dgrad_few_channels.cu has the idea): tiles of dx with the
// dy above them, fragments of the filter and of dy, the terms t of a pixel, and the sum of an element's taps.
#pragma once

#include "kernels/conv2d/conv2d_few_channels.cuh"

namespace kiln {
namespace {

template <int kUnitsArg, int kNTArg, bool kResidentArg>
struct DgradConfig {
  static constexpr int kUnits = kUnitsArg;         // of 32 channels, loaded at a time
  static constexpr int kNT = kNTArg;               // product tiles of 8 terms, summed at a time
  static constexpr bool kResident = kResidentArg;  // the filter is in registers: kUnits and kNT are all
  static constexpr int kBlocks = kResident && kUnits == 1 ? 3 : 2;  // a multiprocessor
};

struct DgradShape {
  int n, h, w, c, k, r, s, p, q;
  int stride_h, stride_w, pad_h, pad_w, x_stride;
  int images, rows;                           // a tile: rows of dx of an image, or several images
  int row_tiles, tiles;                       // of an image; of the problem
  int terms, pitch;                           // R*S*C; floats from one pixel of t to the next, even
  int pixels;                                 // of a full tile's t, a multiple of 16
  uint32_t row_reciprocal, pixel_reciprocal;  // floor(2^32 / d) + 1 of w*x_stride and x_stride
  bool accumulate;
};

struct DgradTile {
  int image, images;        // first image, number
  int first_h, rows;        // of dx
  int first_p, p_rows;      // rows of dy that these need
  int first_pixel, pixels;  // of dy, a contiguous range
};

__device__ __forceinline__ DgradTile dgrad_tile(const DgradShape& g, int tile) {
  const int group = tile / g.row_tiles;
  DgradTile t;
  t.image = group * g.images;
  t.images = min(g.images, g.n - t.image);
  t.first_h = (tile - group * g.row_tiles) * g.rows;
  t.rows = min(g.rows, g.h - t.first_h);
  const int top = t.first_h + g.pad_h - (g.r - 1);
  t.first_p = top > 0 ? (top + g.stride_h - 1) / g.stride_h : 0;
  t.p_rows = max(0, min(g.p - 1, (t.first_h + t.rows - 1 + g.pad_h) / g.stride_h) - t.first_p + 1);
  t.first_pixel = (t.image * g.p + t.first_p) * g.q;
  t.pixels = t.images * t.p_rows * g.q;
  return t;
}

// This lane's word of a filter fragment: two channels of a term, from half `half` of step `step` (16
// channels) and product tile `tile` (8 terms).
__device__ __forceinline__ uint32_t filter_word(const DgradShape& g, const bf16* __restrict__ w,  // [K,R,S,C]
                                                int step, int tile, int half) {
  const int lane = threadIdx.x % 32, term = tile * 8 + lane / 4;
  const int k = step / 2 * 32 + lane % 4 * 8 + step % 2 * 4 + half * 2;
  if (k >= g.k || term >= g.terms) return 0;  // k is even, g.k a multiple of 8
  const auto* bits = reinterpret_cast<const unsigned short*>(w) + k * g.terms + term;
  return bits[0] | static_cast<uint32_t>(bits[g.terms]) << 16;
}

template <class Config>
struct DgradFilter {
  uint32_t v[2 * Config::kUnits][Config::kNT][2];
};

// Channels 8i to 8i+7 of each unit for lane i of four: of pixels lane / 4 and lane / 4 + 8 of sixteen.
template <class Config>
struct Gradients {
  uint4 v[Config::kUnits][2];
};

template <class Config>
__device__ __forceinline__ void load_gradients(Gradients<Config>& to, const bf16* __restrict__ from,  // [,K]
                                               int k, int first_unit, int pixels, int step) {
#pragma unroll
  for (int i = 0; i < Config::kUnits; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = step * 16 + threadIdx.x % 32 / 4 + half * 8;
      const int channel = (first_unit + i) * 32 + threadIdx.x % 4 * 8;
      to.v[i][half] = make_uint4(0, 0, 0, 0);
      if (pixel < pixels && channel < k) {
        to.v[i][half] = *reinterpret_cast<const uint4*>(from + pixel * k + channel);
      }
    }
  }
}

template <class Config>
struct DgradSums {
  float v[Config::kNT][4];
};

// Adds a unit's two steps; `filter(step, tile)` gives the words of the fragment as x and y.
template <class Config, class Filter>
__device__ __forceinline__ void multiply(DgradSums<Config>& sums, const uint4 (&dy)[2],
                                         const Filter& filter) {
  const uint32_t low[4] = {dy[0].x, dy[1].x, dy[0].y, dy[1].y};
  const uint32_t high[4] = {dy[0].z, dy[1].z, dy[0].w, dy[1].w};
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const uint2 b = filter(0, j);
    mma_bf16(sums.v[j], low, b.x, b.y);
  }
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const uint2 b = filter(1, j);
    mma_bf16(sums.v[j], high, b.x, b.y);
  }
}

// Product tiles `first_tile` onwards of sixteen pixels to t.
template <class Config>
__device__ __forceinline__ void store_terms(const DgradSums<Config>& sums, const DgradShape& g, int step,
                                            int first_tile,
                                            float* t) {  // [pixels][pitch]
  const int lane = threadIdx.x % 32;
  float* to = t + (step * 16 + lane / 4) * g.pitch;
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const int term = (first_tile + j) * 8 + lane % 4 * 2;
    if (term >= g.pitch) continue;
    *reinterpret_cast<float2*>(to + term) = make_float2(sums.v[j][0], sums.v[j][1]);
    *reinterpret_cast<float2*>(to + 8 * g.pitch + term) = make_float2(sums.v[j][2], sums.v[j][3]);
  }
}

// The sum of an element's taps. `t`: its image's rows from tile.first_p on; above, left: its row and column
// with the padding.
__device__ __forceinline__ float sum_taps_3x3(const DgradShape& g, const DgradTile& tile, const float* t,
                                              int above, int left, int channel) {
  const int at = ((above - tile.first_p) * g.q + left) * g.pitch + channel;
  const int row_step = 3 * g.c - g.q * g.pitch, column_step = g.c - g.pitch;
  float v[9];
#pragma unroll
  for (int i = 0; i < 9; ++i) {
    const bool real = static_cast<unsigned>(above - i / 3) < static_cast<unsigned>(g.p) &&
                      static_cast<unsigned>(left - i % 3) < static_cast<unsigned>(g.q);
    v[i] = real ? t[at + i / 3 * row_step + i % 3 * column_step] : 0.0f;
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 9; ++i) sum += v[i];
  return sum;
}

__device__ __forceinline__ float sum_taps(const DgradShape& g, const DgradTile& tile, const float* t,
                                          int above, int left, int channel) {
  float sum = 0;
  const int first_s = left % g.stride_w;
  for (int r = above % g.stride_h; r < g.r && r <= above; r += g.stride_h) {
    const int p = (above - r) / g.stride_h;
    if (p >= g.p) continue;
    const float* row = t + (p - tile.first_p) * g.q * g.pitch + r * g.s * g.c + channel;
    for (int s = first_s, q = (left - first_s) / g.stride_w; s < g.s && q >= 0; s += g.stride_w, --q) {
      if (q < g.q) sum += row[q * g.pitch + s * g.c];
    }
  }
  return sum;
}

__device__ __forceinline__ int quotient(int a, int b, uint32_t reciprocal) {
  return b == 1 ? a : static_cast<int>(__umulhi(a, reciprocal));
}

__device__ __forceinline__ void store_tile(const DgradShape& g, const DgradTile& tile, const float* t,
                                           bf16* __restrict__ dx) {  // [N,H,W,c_stride]
  const int row_elements = g.w * g.x_stride;
  const bool plain = g.r == 3 && g.s == 3 && g.stride_h == 1 && g.stride_w == 1;
  dx += static_cast<size_t>(tile.image * g.h + tile.first_h) * row_elements;
  for (int i = threadIdx.x; i < tile.images * tile.rows * row_elements; i += kFewThreads) {
    int row = quotient(i, row_elements, g.row_reciprocal);
    const int rest = i - row * row_elements, column = quotient(rest, g.x_stride, g.pixel_reciprocal);
    const int channel = rest - column * g.x_stride;
    const float* own = t;
    if (g.images > 1) {
      own += row / g.h * tile.p_rows * g.q * g.pitch;
      row %= g.h;
    }
    float sum = 0;
    if (channel < g.c) {
      const int above = tile.first_h + row + g.pad_h, left = column + g.pad_w;
      sum = plain ? sum_taps_3x3(g, tile, own, above, left, channel)
                  : sum_taps(g, tile, own, above, left, channel);
    }
    if (g.accumulate) sum += to_float(dx[i]);
    dx[i] = from_float<bf16>(sum);
  }
}

}  // namespace
}  // namespace kiln
