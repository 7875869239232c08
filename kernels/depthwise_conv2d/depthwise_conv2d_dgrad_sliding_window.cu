// depthwise_conv2d dgrad: dx[n,h,w,c] = sum_{r,s : h = p*st+r-ph, w = q*st+s-pw} dy[n,p,q,c] * w[r,s,c].
//
// Stride 1 is fwd's kernel with the filter turned. Stride 2 is this file's: dx is cut into cells of 2 x 2
// pixels, which each meet only the taps of their own parity, so that no tap is a zero. Pixel e of cell a has
// the padded index 2a + kShift + e, hence meets r = 2m + e - kShift of dy row a + kShift - m for m = 0 ...
// kRing-1 (columns alike). kShift is the parity of the padding, so that cells begin at pixel 0.
// A thread owns a pair of channels and kCells neighbouring cells and walks down the rows of cells of its task
// (depthwise_conv2d_tile.cuh). Stage k takes one dy row, each pixel loaded once, and adds it to the kRing
// rows of cells it belongs to, whose sums are in registers; the oldest is then complete and stored. Filter
// and sums are fp32. No shared memory. Channels even, filter 3x3 or 5x5. Deterministic. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/common/check.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_correlation.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 128;

template <class T, int kR_, int kShift_>
struct Config {
  static constexpr int kR = kR_, kShift = kShift_;
  static constexpr int kCells = kR == 3 ? 4 : 2;  // of a thread's row
  static constexpr int kRing = (kR + 1) / 2;
  static constexpr int kInputs = kCells + kRing - 1;  // dy columns
  static constexpr int kBlocks = sizeof(T) == 2 ? 4 : 3;
  static_assert(kR % 2 == 1, "the taps of an even filter would need another ring");
};

struct Shape {
  int h, w, c, p, q;
  int pad_h, pad_w;
  int first_row, first_column;  // cells
  int cell_rows;                // of an image
  int rows, row_tasks;          // rows of cells of a task, tasks of an image
  DepthwiseTile tile;
};

// What a thread holds while it walks down. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Walk {
  static constexpr int kR = Config::kR, kShift = Config::kShift, kRing = Config::kRing;
  static constexpr int kPixels = 2 * Config::kCells, kInputs = Config::kInputs;

  const T* dy;                     // dy row of stage 0, first column and channel; may lie outside
  T* dx;                           // first pixel of the first cell, may lie outside
  unsigned dy_row, dx_row, pixel;  // bytes from a row of dy, of dx, from a pixel to the next
  int top, bottom;                 // stages whose dy row exists: top <= k < bottom
  int count;                       // rows of cells
  int h0, h;                       // row of dx, rows of dx in all
  unsigned in, out;                // columns inside the image
  float2 taps[kR][kR];
  PixelRow<T, kInputs> stage[kRing];
  float2 sum[kRing][2][kPixels];

  template <int kBuffer>
  __device__ __forceinline__ void load(int k) {
    if (k >= top && k < bottom) {
      stage[kBuffer].load(offset_by(dy, static_cast<ptrdiff_t>(dy_row) * k), pixel, in);
    } else {
      stage[kBuffer].clear();
    }
  }

  // Adds the dy row of a stage; the sums of the row of cells it completes are in slot j.
  template <int j>
  __device__ __forceinline__ void add_row() {
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      const float2 v = stage[j].at[i].value();
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const int slot = (j + (r + kShift) / 2) % kRing, e = (r + kShift) % 2;
#pragma unroll
        for (int s = 0; s < kR; ++s) {
          const int cell = i - (kRing - 1) + (s + kShift) / 2, f = (s + kShift) % 2;
          if (cell >= 0 && cell < Config::kCells) fma_pair(sum[slot][e][2 * cell + f], v, taps[r][s]);
        }
      }
    }
  }

  template <int j>
  __device__ __forceinline__ bool step(int k) {
    const int done = k - (kRing - 1);  // the row of cells that is complete after this stage
    if (done >= count) return true;
    add_row<j>();
    load<j>(k + kRing);
    if (done >= 0) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 2 * done + e;
        if (h0 + row >= 0 && h0 + row < h) {
          store_pixels(offset_by(dx, static_cast<ptrdiff_t>(dx_row) * row), pixel, out, sum[j][e]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kPixels; ++i) sum[j][i / kPixels][i % kPixels] = {0.0f, 0.0f};
    return false;
  }

  template <int... j>
  __device__ __forceinline__ void walk(int k, std::integer_sequence<int, j...>) {
    (load<j>(k + j), ...);
    while (!(step<j>(k + j) || ...)) k += kRing;
  }
};

template <class T, int kR, int kShift>
__global__
__launch_bounds__(kThreads, Config<T, kR, kShift>::kBlocks) void depthwise_conv2d_dgrad_sliding_window_kernel(
    const T* __restrict__ dy,  // [N,P,Q,C]
    const T* __restrict__ w,   // [R,R,C]
    T* __restrict__ dx,        // [N,H,W,C]
    const __grid_constant__ Shape g) {
  using Config = Config<T, kR, kShift>;
  const DepthwisePlace at = depthwise_place(g.tile);
  if (at.pair >= g.tile.pairs || at.strip >= g.tile.strips || at.task >= g.tile.tasks) return;
  const int c = 2 * at.pair, n = at.task / g.row_tasks;
  const int skipped = (at.task - n * g.row_tasks) * g.rows;  // rows of cells above
  const int a0 = g.first_row + skipped, b0 = g.first_column + at.strip * Config::kCells;
  const int p0 = a0 + kShift - (Config::kRing - 1), q0 = b0 + kShift - (Config::kRing - 1);
  const int w0 = 2 * b0 + kShift - g.pad_w;

  Walk<T, Config> walk;
  walk.count = min(g.rows, g.cell_rows - skipped);
  walk.top = max(0, -p0);
  walk.bottom = min(g.p - p0, walk.count + Config::kRing - 1);
  walk.h0 = 2 * a0 + kShift - g.pad_h;
  walk.h = g.h;
  walk.dy = dy + ((static_cast<ptrdiff_t>(n) * g.p + p0) * g.q + q0) * g.c + c;
  walk.dx = dx + ((static_cast<ptrdiff_t>(n) * g.h + walk.h0) * g.w + w0) * g.c + c;
  walk.pixel = g.c * sizeof(T);
  walk.dy_row = g.q * walk.pixel;
  walk.dx_row = g.w * walk.pixel;
  walk.in = pixels_inside<Config::kInputs>(q0, g.q);
  walk.out = pixels_inside<2 * Config::kCells>(w0, g.w);
  keep(walk.in);
  keep(walk.out);
#pragma unroll
  for (int b = 0; b < Config::kRing; ++b) walk.stage[b].clear();
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) {
    ChannelPair<T> tap;
    tap.load(w + i * g.c + c);
    walk.taps[i / kR][i % kR] = tap.value();
    keep(walk.taps[i / kR][i % kR]);
  }
#pragma unroll
  for (int i = 0; i < Config::kRing * 4 * Config::kCells; ++i) {
    constexpr int kPixels = 2 * Config::kCells;
    walk.sum[i / (2 * kPixels)][i / kPixels % 2][i % kPixels] = {0.0f, 0.0f};
  }
  walk.walk(0, std::make_integer_sequence<int, Config::kRing>());
}

template <class T, int kR, int kShift>
void launch(const DepthwiseConv2dDgrad::Args& a, const Shape& g, Stream stream) {
  depthwise_conv2d_dgrad_sliding_window_kernel<T, kR, kShift>
      <<<g.tile.grid(), g.tile.block(), 0, cuda_stream(stream)>>>(
          static_cast<const T*>(a.dy), static_cast<const T*>(a.w), static_cast<T*>(a.dx), g);
  check_launch("depthwise_conv2d_dgrad_sliding_window_kernel");
}

// Cells along a side: from the one that holds pixel 0 to the one that holds the last.
int first_cell(int pad, int shift) { return (pad - shift) / 2; }
int last_cell(int length, int pad, int shift) { return (length - 1 + pad - shift) / 2; }

// At most kMostRows rows a task, so that what is written at a time lies close together; fewer where that
// leaves fewer than 3 blocks a multiprocessor.
Shape make_shape(const DepthwiseConv2dProblem& p, int shift, int cells, const Device& device,
                 int rows_wanted) {
  constexpr int kLeastRows = 2, kMostRows = 4;
  Shape g = {.h = p.h,
             .w = p.w,
             .c = p.c,
             .p = p.p(),
             .q = p.q(),
             .pad_h = p.pad_h,
             .pad_w = p.pad_w,
             .first_row = first_cell(p.pad_h, shift),
             .first_column = first_cell(p.pad_w, shift),
             .cell_rows = 0,
             .rows = 0,
             .row_tasks = 0,
             .tile = {}};
  g.cell_rows = last_cell(p.h, p.pad_h, shift) - g.first_row + 1;
  const int strips = ceil_div(last_cell(p.w, p.pad_w, shift) - g.first_column + 1, cells);
  const int most = ceil_div(g.cell_rows, std::min(rows_wanted ? rows_wanted : kLeastRows, g.cell_rows));
  const int first = rows_wanted ? most : std::min(most, ceil_div(g.cell_rows, kMostRows));
  for (int row_tasks = first; row_tasks <= most; ++row_tasks) {
    g.rows = ceil_div(g.cell_rows, row_tasks);
    g.row_tasks = ceil_div(g.cell_rows, g.rows);
    g.tile = make_depthwise_tile(p.c / 2, strips, p.n * g.row_tasks, kThreads);
    if (g.tile.grid() >= 3u * static_cast<unsigned>(device.multiprocessors)) break;
  }
  return g;
}

template <class T, int kR, int kShift>
Plan<DepthwiseConv2dDgrad::Args> plan_cells(const DepthwiseConv2dProblem& p, const Device& device,
                                            int rows_wanted) {
  const Shape g = make_shape(p, kShift, Config<T, kR, kShift>::kCells, device, rows_wanted);
  return make_plan<DepthwiseConv2dDgrad::Args>(
      0, [g](const auto& a, void*, Stream stream) { launch<T, kR, kShift>(a, g, stream); });
}

template <class T>
Plan<DepthwiseConv2dDgrad::Args> plan_stride_2(const DepthwiseConv2dProblem& p, const Device& device,
                                               int rows_wanted) {
  if (p.r == 5) return plan_cells<T, 5, 0>(p, device, rows_wanted);
  // The shift only saves a cell a side, so where the paddings differ in parity no shift will do.
  const bool odd = p.pad_h % 2 == 1 && p.pad_w % 2 == 1;
  return odd ? plan_cells<T, 3, 1>(p, device, rows_wanted) : plan_cells<T, 3, 0>(p, device, rows_wanted);
}

Plan<DepthwiseConv2dDgrad::Args> plan_stride_1(const DepthwiseConv2dProblem& p, const Device& device,
                                               std::string_view config) {
  return make_plan<DepthwiseConv2dDgrad::Args>(
      0, [run = make_depthwise_correlation(depthwise_turned(p), true, device, config)](const auto& a, void*,
                                                                                       Stream stream) {
        run({.x = a.dy, .w = a.w, .bias = nullptr, .y = a.dx}, stream);
      });
}

}  // namespace

extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_sliding_window = {
    .name = "sliding_window",
    .supports = depthwise_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          if (p.stride_h == 1) return plan_stride_1(p, device, config);
          const int rows = depthwise_rows_of_config(config);
          return p.dtype == DType::kBF16 ? plan_stride_2<bf16>(p, device, rows)
                                         : plan_stride_2<float>(p, device, rows);
        },
    .configs = [](const DepthwiseConv2dProblem& p, const Device&) { return depthwise_configs(p.h); }};

}  // namespace kiln
