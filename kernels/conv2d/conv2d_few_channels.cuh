// What the few_channels passes of conv2d share: tiles of whole output rows, and x under such a tile in shared
// memory.
//
// With three channels a pixel is six bytes, and neither 16-byte copies nor ldmatrix can pick up its patch.
// The x under a tile of whole rows is one contiguous piece of memory, though: it is copied as it is, 16 bytes
// a thread, and spread from there into rows that have their padding as zeros and only the channels that
// count. In a row of this "padded" tile the S*C terms of one filter row lie side by side, so that a patch is
// R short runs, found by one number a pixel (few_pixel_table) and one an element of the patch.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/error.h"
#include "kernels/common/grid.h"
#include "kernels/common/mma.cuh"
#include "kernels/conv2d/conv2d.h"

namespace kiln {
namespace {

constexpr int kFewThreads = 256;
constexpr int kFewWarps = kFewThreads / 32;
constexpr int kFewPixels = 1024;  // of a tile, unless one row is longer

struct FewShape {
  int n, h, w, c, k, r, s, p, q;
  int stride_h, stride_w, pad_h, pad_w, x_stride;
  int images, rows;       // a tile: output rows of an image, or of several images if it is whole images
  int row_tiles, tiles;   // of an image; of the problem
  int pixels;             // of a full tile
  int x_rows, x_pitch;    // padded rows under one image of a tile; elements of one, even
  int copy_bytes;         // from one padded copy to the next
  uint32_t c_reciprocal;  // floor(2^32 / c) + 1
};

inline FewShape few_shape(const Conv2dProblem& a, int rows) {
  FewShape g = {};
  g.n = a.n, g.h = a.h, g.w = a.w, g.c = a.c, g.k = a.k, g.r = a.r, g.s = a.s, g.p = a.p(), g.q = a.q();
  g.stride_h = a.stride_h, g.stride_w = a.stride_w, g.pad_h = a.pad_h, g.pad_w = a.pad_w;
  g.x_stride = a.x_channels();
  g.rows = std::min(rows, g.p);
  g.images = g.rows == g.p ? std::clamp(kFewPixels / 2 / (g.p * g.q), 1, g.n) : 1;
  g.row_tiles = ceil_div(g.p, g.rows);
  g.tiles = ceil_div(g.n, g.images) * g.row_tiles;
  g.pixels = g.images * g.rows * g.q;
  g.x_rows = (g.rows - 1) * g.stride_h + g.r;
  g.x_pitch = ceil_div(((g.q - 1) * g.stride_w + g.s) * g.c, 2) * 2;
  // Half the banks further, so that two copies read together do not meet.
  const int64_t copy = ceil_div<int64_t>(2LL * g.images * g.x_rows * g.x_pitch, 128) * 128 + 64;
  g.copy_bytes = static_cast<int>(std::min<int64_t>(copy, 1 << 28));  // far beyond what fits
  g.c_reciprocal = static_cast<uint32_t>((1ULL << 32) / g.c + 1);
  return g;
}

// Shared memory: pixel table, padded copies, x as it came.
inline int few_smem_bytes(const FewShape& g, int copies) {
  const int64_t raw_rows = (g.images - 1LL) * g.h + std::min(g.h, g.x_rows);
  const int64_t bytes = ceil_div(g.pixels, 16) * 64LL + 1LL * copies * g.copy_bytes +
                        (ceil_div<int64_t>(raw_rows * g.w * g.x_stride, 8) + 1) * 16;
  return static_cast<int>(std::min<int64_t>(bytes, 1 << 30));
}

struct FewTile {
  int image, images;        // first image, number
  int first_pixel, pixels;  // of y, a contiguous range
  int first_h;              // row of x at the top of the tile, negative on the padding
};

__device__ __forceinline__ FewTile few_tile(const FewShape& g, int tile) {
  const int group = tile / g.row_tiles, p0 = (tile - group * g.row_tiles) * g.rows;
  FewTile t;
  t.image = group * g.images;
  t.images = min(g.images, g.n - t.image);
  t.first_pixel = (t.image * g.p + p0) * g.q;
  t.pixels = t.images * min(g.rows, g.p - p0) * g.q;
  t.first_h = p0 * g.stride_h - g.pad_h;
  return t;
}

// First element of x that the tile's copy holds, on a 16-byte boundary.
__device__ __forceinline__ int few_origin(const FewShape& g, const FewTile& t) {
  return (t.image * g.h + max(t.first_h, 0)) * g.w * g.x_stride / 8 * 8;
}

// Starts the copy of the tile's x, from the first real row to the last.
__device__ __forceinline__ void few_copy(const FewShape& g, const FewTile& t,
                                         const bf16* __restrict__ x,  // [N,H,W,c_stride]
                                         bf16* raw) {
  const int row = g.w * g.x_stride, total = g.n * g.h * row, origin = few_origin(g, t);
  const int end = ((t.image + t.images - 1) * g.h + min(g.h, t.first_h + g.x_rows)) * row;
  for (int i = threadIdx.x * 8; i < end - origin; i += kFewThreads * 8) {
    if (total - origin - i >= 8) {
      cp_async16(smem_address(raw + i), x + origin + i, true);
    } else {
      for (int j = 0; j < total - origin - i; ++j) raw[i + j] = x[origin + i + j];
    }
  }
  cp_async_commit();
}

// Spreads the copied x into padded rows. The second copy begins with the first one's second element, so that
// a pair of elements lies in one word in one copy or the other.
template <int kCopies>
__device__ __forceinline__ void few_spread(const FewShape& g, const FewTile& t, const bf16* raw,
                                           unsigned char* padded) {
  const int lane = threadIdx.x % 32, words = g.x_pitch / 2, row = g.w * g.x_stride;
  const unsigned real_width = g.w * g.c;
  const auto* from = reinterpret_cast<const unsigned short*>(raw);
  for (int i = threadIdx.x / 32; i < g.images * g.x_rows; i += kFewWarps) {
    const int image = i / g.x_rows, h = t.first_h + i - image * g.x_rows;
    const bool real = image < t.images && static_cast<unsigned>(h) < static_cast<unsigned>(g.h);
    const int start = ((t.image + image) * g.h + h) * row - few_origin(g, t);
    const auto fetch = [&](int element) -> uint32_t {
      const int e = element - g.pad_w * g.c;
      if (!real || static_cast<unsigned>(e) >= real_width) return 0;
      if (g.x_stride == g.c) return from[start + e];
      const int column = g.c == 1 ? e : static_cast<int>(__umulhi(e, g.c_reciprocal));
      return from[start + e + column * (g.x_stride - g.c)];
    };
    auto* to = reinterpret_cast<uint32_t*>(padded + i * g.x_pitch * 2);
    for (int word = lane; word < words; word += 32) {
      const uint32_t second = fetch(2 * word + 1);
      to[word] = fetch(2 * word) | second << 16;
      if constexpr (kCopies == 2) to[g.copy_bytes / 4 + word] = second | fetch(2 * word + 2) << 16;
    }
  }
}

// table[i]: byte of the padded tile where the patch of the tile's pixel i begins; with two copies in the one
// where it is the first of a word. Entries beyond the last pixel are those of pixel 0.
template <int kCopies>
__device__ __forceinline__ void few_pixel_table(const FewShape& g, int* table) {
  for (int i = threadIdx.x; i < (g.pixels + 15) / 16 * 16; i += kFewThreads) {
    const int row = i < g.pixels ? i / g.q : 0, column = i < g.pixels ? i % g.q : 0;
    const int image = row / g.rows, p = row % g.rows;
    const int start = (image * g.x_rows + p * g.stride_h) * g.x_pitch + column * g.stride_w * g.c;
    table[i] = kCopies == 2 && start % 2 ? g.copy_bytes + (start - 1) * 2 : start * 2;
  }
}

// Output rows of a tile when `places` blocks run at once: the number that finishes first among those whose
// `bytes(rows)` of shared memory are at most `limit`; where none is, 1. Warps take 16 pixels each; a tile
// costs its waiting besides.
template <class Bytes>
int few_best_rows(const Conv2dProblem& problem, int places, int limit, const Bytes& bytes) {
  int best = 1;
  double best_cost = 0;
  for (int rows = 1; rows <= problem.p(); ++rows) {
    const FewShape g = few_shape(problem, rows);
    if (rows > 1 && g.pixels > kFewPixels) break;
    if (rows > 1 && bytes(g) > limit) continue;
    const double cost = 1.0 * ceil_div(g.tiles, places) *
                        (ceil_div(g.pixels, 16 * kFewWarps) * 16 * kFewWarps + 96 + g.r * g.q / 4);
    if (rows == 1 || cost < best_cost) best = rows, best_cost = cost;
  }
  return best;
}

// A config is "rows<N>", N output rows a tile. 0 for an empty one.
inline int few_config_rows(std::string_view config) {
  if (config.empty()) return 0;
  int rows = 0;
  const std::string text(config);
  if (text.starts_with("rows") && text.size() > 4 && text.size() < 9 &&
      text.find_first_not_of("0123456789", 4) == std::string::npos) {
    rows = std::stoi(text.substr(4));
  }
  if (rows < 1) fail_usage("conv2d: unknown few_channels config '" + text + "'; known: rows<N>");
  return rows;
}

// The configs worth trying: `best` and powers of two up to `most` rows that `fits` takes.
template <class Fits>
std::vector<std::string> few_configs(int best, int most, const Fits& fits) {
  std::vector<int> rows = {best};
  for (int i = 2; i < 2 * most; i *= 2) {
    const int candidate = std::min(i, most);
    if (candidate != best && fits(candidate)) rows.push_back(candidate);
  }
  std::vector<std::string> names;
  for (const int i : rows) names.push_back(std::string("rows").append(std::to_string(i)));
  return names;
}

constexpr int kFewMaxTerms = 160, kFewMaxSide = 4096;

// What all passes ask for; each adds the shared memory of its smallest tile.
inline Support few_supports(const Conv2dProblem& p, const Device&) {
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.c > 8) return Support::no("input channels must be at most 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (std::max(p.h, p.w) > kFewMaxSide) return Support::no("height and width must be at most 4096");
  return Support::require(p.r * ceil_div(p.s * p.c, 2) * 2 <= kFewMaxTerms,
                          "the terms of an output must be at most 160");
}

constexpr const char* kFewTooWide = "the rows under one row of output must fit into shared memory";

// Where this or another rung of the table takes a problem: 8 channels are what the others are made for.
inline bool few_preferred(const Conv2dProblem& p, const Device&) { return p.c < 8; }

}  // namespace
}  // namespace kiln
