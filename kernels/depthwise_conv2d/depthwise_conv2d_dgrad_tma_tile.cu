// depthwise_conv2d dgrad: dx[n,h,w,c] = sum_{r,s : h = p*st+r-ph, w = q*st+s-pw} dy[n,p,q,c] * w[r,s,c]. On
// Hopper, fed by the copy engine.
//
// Stride 1 is fwd's kernel (depthwise_conv2d_fwd_tma_tile.cu) with the filter turned. Stride 2 is this
// file's: dx is swept in cells of 2 x 2 pixels, which each meet only the taps of their own parity, so that no
// tap is a zero. Pixel e of cell a has the padded index 2a + kShift + e, hence meets r = 2m + e - kShift of
// dy row a + kShift - m for m = 0 .. kRing-1 (columns alike). kShift is the parity of the padding, so that
// cells begin at pixel 0. A thread owns a pair of channels, kCells neighbouring cells and some rows of cells
// of each tile, with the kRing dy rows under its current row of cells as fp32 in a ring of registers. Stages,
// shared memory and preconditions as in fwd. Deterministic. Mirrors cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_correlation.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.cuh"

namespace kiln {
namespace {

template <int kR_, int kShift_>
struct Config {
  static constexpr int kR = kR_, kShift = kShift_;
  static constexpr int kCells = 4;                    // of a thread's row
  static constexpr int kRing = (kR + 1) / 2;          // dy rows that a cell meets
  static constexpr int kInputs = kCells + kRing - 1;  // dy columns
  static constexpr int kBlocks = kR == 3 ? 2 : 1;     // a multiprocessor, for their registers
  static_assert(kR % 2 == 1, "the taps of an even filter would need another ring");
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Window {
  static constexpr int kR = Config::kR, kShift = Config::kShift, kRing = Config::kRing;
  static constexpr int kPixels = 2 * Config::kCells, kInputs = Config::kInputs;

  float2 taps[kR][kR];
  float2 rows[kRing][kInputs];   // dy row i of the task is in slot i % kRing
  ChannelPair<T> next[kInputs];  // the row that the next step brings
  const unsigned char* dy;       // the row after it, in shared memory
  T* dx;                         // first pixel of the row of cells, may lie outside
  int dy_pixel, dy_row;          // bytes from one to the next, in shared memory
  unsigned dx_pixel, dx_row;     // in dx
  unsigned out;                  // columns of dx inside
  int h0, h;                     // row of dx where the walk begins, rows of dx in all
  int count;                     // rows of cells

  __device__ __forceinline__ void load_next() {
    load_tile_row(next, dy, dy_pixel);
    dy += dy_row;
  }
  __device__ __forceinline__ void take_next(float2 (&row)[kInputs]) {
#pragma unroll
    for (int i = 0; i < kInputs; ++i) row[i] = next[i].value();
  }
  // The rows above the one that the first step brings.
  __device__ __forceinline__ void load_first() {
    load_next();
#pragma unroll
    for (int i = 0; i < kRing - 1; ++i) {
      take_next(rows[i]);
      load_next();
    }
  }

  // Row e of row of cells k, where k % kRing == j.
  template <int j, int e>
  __device__ __forceinline__ void pixel_row(int k) {
    float2 sum[kPixels] = {};
#pragma unroll
    for (int i = 0; i < kRing * kRing; ++i) {
      const int m = i / kRing, l = i % kRing, r = 2 * m + e - kShift;
      if (r < 0 || r >= kR) continue;
#pragma unroll
      for (int f = 0; f < kPixels; ++f) {
        const int s = 2 * l + f % 2 - kShift;
        if (s < 0 || s >= kR) continue;
        fma_pair(sum[f], rows[(j + kRing - 1 - m) % kRing][f / 2 + kRing - 1 - l], taps[r][s]);
      }
    }
    if (static_cast<unsigned>(h0 + 2 * k + e) < static_cast<unsigned>(h)) {
      store_pixels(dx, dx_pixel, out, sum);
    }
    dx = offset_by(dx, dx_row);
  }

  // Returns whether another row of cells follows.
  template <int j>
  __device__ __forceinline__ bool step(int k) {
    take_next(rows[(j + kRing - 1) % kRing]);
    const bool more = k + 1 < count;
    if (more) load_next();
    pixel_row<j, 0>(k);
    pixel_row<j, 1>(k);
    return more;
  }
  template <int... j>
  __device__ __forceinline__ void walk(std::integer_sequence<int, j...>) {
    for (int k = 0; (step<j>(k + j) && ...); k += kRing) {
    }
  }
};

// dx, of which g.n, height and width are the cells.
struct Pixels {
  int h, w;
  int first_h, first_w;  // pixel (0, 0) of cell (0, 0): 0 or negative
};

template <class T, int kR, int kShift>
__global__
__launch_bounds__(kTmaTileThreads, Config<kR, kShift>::kBlocks) void depthwise_conv2d_dgrad_tma_tile_kernel(
    const __grid_constant__ CUtensorMap source,  // dy [N,P,Q,C]
    const T* __restrict__ w,                     // [R,R,C]
    T* __restrict__ dx,                          // [N,H,W,C]
    const __grid_constant__ TmaTileShape g, const __grid_constant__ Pixels pixels) {
  using Config = Config<kR, kShift>;
  extern __shared__ unsigned char raw[];
  TileRing ring(raw, g, &source, nullptr);
  const TileTask task(g, Config::kCells, ring.channel);
  Window<T, Config> window;
  if (task.works) load_taps(window.taps, w, g.c, task.c, false);
  window.dy_pixel = g.channels * static_cast<int>(sizeof(T));
  window.dy_row = g.box_w * window.dy_pixel;
  window.dx_pixel = g.c * static_cast<unsigned>(sizeof(T));
  window.dx_row = pixels.w * window.dx_pixel;
  window.h = pixels.h;
  const int first =  // of the thread's dy in a tile
      ((task.image * g.box_h + task.row) * g.box_w + task.column) * window.dy_pixel +
      task.pair * 2 * static_cast<int>(sizeof(T));
  for (; !ring.done(g); ring.next(g)) {
    const TileCorner at(g, ring.index);
    const int w0 = pixels.first_w + 2 * (at.column + task.column);
    window.count = task.works ? task.rows_at(g, at) : 0;
    window.h0 = pixels.first_h + 2 * (at.row + task.row);
    window.out = pixels_inside<2 * Config::kCells>(w0, pixels.w);
    const unsigned char* tile = ring.wait(g);
    if (window.count > 0) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(at.n + task.image) * pixels.h + window.h0;
      window.dx = dx + (row * pixels.w + w0) * g.c + task.c;
      window.dy = tile + first;
      window.load_first();
      window.walk(std::make_integer_sequence<int, Config::kRing>());
    }
  }
}

template <class T, int kR, int kShift>
Plan<DepthwiseConv2dDgrad::Args> plan_cells(const DepthwiseConv2dProblem& p, const TmaTilePlan& plan,
                                            const Pixels& pixels) {
  const auto kernel = depthwise_conv2d_dgrad_tma_tile_kernel<T, kR, kShift>;
  allow_shared_memory(kernel);
  using Args = DepthwiseConv2dDgrad::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const TmaTileShape& g = plan.shape;
    const CUtensorMap source =
        make_box_map<T>(a.dy, {p.n, p.p(), p.q(), p.c}, {g.images, g.box_h, g.box_w, g.channels});
    return Bound([=](Stream stream) {
      kernel<<<plan.grid, kTmaTileThreads, plan.smem_bytes, cuda_stream(stream)>>>(
          source, static_cast<const T*>(a.w), static_cast<T*>(a.dx), plan.shape, pixels);
      check_launch("depthwise_conv2d_dgrad_tma_tile_kernel");
    });
  });
}

// The shift only saves a cell a side, so where the paddings differ in parity no shift will do.
int shift_of(const DepthwiseConv2dProblem& p) {
  return p.r == 3 && p.pad_h % 2 == 1 && p.pad_w % 2 == 1 ? 1 : 0;
}

TmaSweep cell_sweep(const DepthwiseConv2dProblem& p) {
  const int ring = (p.r + 1) / 2, shift = shift_of(p);
  const auto first_cell = [&](int pad) { return (pad - shift) / 2; };
  const auto cells = [&](int length, int pad) {
    return (length - 1 + pad - shift) / 2 - first_cell(pad) + 1;
  };
  return {.n = p.n,
          .height = cells(p.h, p.pad_h),
          .width = cells(p.w, p.pad_w),
          .c = p.c,
          .source_h = p.p(),
          .source_w = p.q(),
          .step = 1,
          .window = ring,
          .origin_h = first_cell(p.pad_h) + shift - (ring - 1),
          .origin_w = first_cell(p.pad_w) + shift - (ring - 1),
          .columns = Config<3, 0>::kCells,
          .blocks = p.r == 3 ? Config<3, 0>::kBlocks : Config<5, 0>::kBlocks,
          .element_bytes = static_cast<int>(size_of(p.dtype)),
          .loads_swept = false,
          .stored_pixels = 4,
          .pixel_slots = 2.0 * p.r * p.r + 16,
          .window_slots = 3.0 * (Config<3, 0>::kCells + ring - 1)};
}

template <class T>
Plan<DepthwiseConv2dDgrad::Args> plan_stride_2(const DepthwiseConv2dProblem& p, const Device& device,
                                               std::string_view config) {
  const int shift = shift_of(p);
  const auto first_pixel = [&](int pad) { return (pad - shift) / 2 * 2 + shift - pad; };
  const Pixels pixels = {p.h, p.w, first_pixel(p.pad_h), first_pixel(p.pad_w)};
  const TmaTilePlan plan = plan_tma_tile(cell_sweep(p), device, config);
  if (p.r == 5) return plan_cells<T, 5, 0>(p, plan, pixels);
  return shift == 1 ? plan_cells<T, 3, 1>(p, plan, pixels) : plan_cells<T, 3, 0>(p, plan, pixels);
}

}  // namespace

extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_tma_tile = {
    .name = "tma_tile",
    .supports = tma_tile_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          if (p.stride_h == 1) {
            return plan_depthwise_turned(
                plan_tma_tile_correlation(depthwise_turned(p), true, device, config));
          }
          return p.dtype == DType::kBF16 ? plan_stride_2<bf16>(p, device, config)
                                         : plan_stride_2<float>(p, device, config);
        },
    .configs =
        [](const DepthwiseConv2dProblem& p, const Device& device) {
          return p.stride_h == 1 ? tma_tile_correlation_configs(depthwise_turned(p), device)
                                 : tma_tile_configs(cell_sweep(p), device);
        },
    .preferred = [](const DepthwiseConv2dProblem& p, const Device&) { return tma_dgrad_preferred(p); }};

double tma_tile_dgrad_cycles(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_tile_cycles(cell_sweep(p), device);
}

}  // namespace kiln
