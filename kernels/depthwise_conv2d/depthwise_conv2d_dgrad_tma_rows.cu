// depthwise_conv2d dgrad: dx[n,h,w,c] = sum_{r,s : h = p*st+r-ph, w = q*st+s-pw} dy[n,p,q,c] * w[r,s,c]. On
// Hopper, rows of dy streamed by the copy engine.
//
// Stride 1 is fwd's kernel (depthwise_conv2d_fwd_tma_rows.cu) with the filter turned. Stride 2 is this
// file's: dx is swept in pairs of rows, row e of pair a being h = 2a + e - ph; it meets r = 2m + e of dy row
// a - m for m = 0 .. kRing-1, so that no tap is a zero. Columns alike in cells of two, but shifted: pixel f
// of cell b is w = 2b + kShift + f - pw and meets s = 2l + f - kShift of dy column b + kShift - l; with the
// parity of the padding as shift, cells begin at pixel 0. Blocks, threads, ring, shared memory and
// preconditions as in fwd: a row of dy is unpacked once and added to the kRing pairs of rows it belongs to,
// whose sums are in registers. Deterministic. Mirrors cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_correlation.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_rows.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.h"

namespace kiln {
namespace {

template <class T, int kR_, int kShift_>
struct Config {
  static constexpr int kR = kR_, kShift = kShift_;
  static constexpr int kVector = kRowsVector<T, kR>;
  static constexpr int kThreads = kR == 3 ? 256 : 192;  // of a block at most, for their registers
  static constexpr int kCells = 2;                      // of a thread's row
  static constexpr int kRing = (kR + 1) / 2;            // dy rows that a pair of rows meets
  static constexpr int kInputs = kCells + kRing - 1;    // dy columns
  static_assert(kR % 2 == 1, "the taps of an even filter would need another ring");
};

// dx, of which g.height and g.width are pairs of rows and cells.
struct Pixels {
  int h, w;
  int first_h, first_w;  // pixel (0, 0) of pair 0, cell 0: 0 or negative
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Walk {
  static constexpr int kR = Config::kR, kShift = Config::kShift, kRing = Config::kRing;
  static constexpr int kColumns = 2 * Config::kCells, V = Config::kVector;
  using Channels = ChannelVector<T, V>;
  using Ring = RowsRing<1, false>;

  float taps[kR][kR][V];
  float sum[kRing][2][kColumns][V];  // pair a of the task is in slot a % kRing
  uint32_t dy;                       // the thread's dy of its next row, in shared memory
  int first, pixel, dy_row;          // bytes from a stage's begin to the thread's dy, from one to the next
  int left;                          // rows of this stage that are not read yet
  T* dx;                             // first pixel of the row that is stored next, may lie outside
  unsigned dx_pixel, dx_row;         // bytes from one to the next
  unsigned inside;                   // columns that are stored
  int h;                             // of that row

  // The m of the first dy row that meets row e of a pair.
  static __host__ __device__ constexpr int first_met(int e) { return (kR - 1 - e) / 2; }
  static __host__ __device__ constexpr int slot_of(int j, int m) { return (j + 1 + m) % kRing; }

  // Adds dy row v of the task, where v % kRing == j, to pairs v - (kRing-1) + m.
  template <int j>
  __device__ __forceinline__ void add_row() {
#pragma unroll
    for (int i = 0; i < Config::kInputs; ++i) {
      Channels packed;
      float value[V];
      packed.load_shared(dy + i * pixel);
      packed.value(value);
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const int m = r / 2, e = r % 2;
#pragma unroll
        for (int t = 0; t < kColumns; ++t) {
          const int l = t / 2 + kRing - 1 - i, s = 2 * l + t % 2 - kShift;
          if (l < 0 || l >= kRing || s < 0 || s >= kR) continue;
          // The first product of all that this pixel is the sum of.
          const int last_l = (kR - 1 + kShift - t % 2) / 2;
          const bool begins = m == first_met(e) && l == (last_l < kRing ? last_l : kRing - 1);
          float(&sums)[V] = sum[slot_of(j, m)][e][t];
#pragma unroll
          for (int k = 0; k < V; ++k) sums[k] = fmaf(value[k], taps[r][s][k], begins ? 0.0f : sums[k]);
        }
      }
    }
  }
  // What add_row begins, where there is no dy row.
  template <int j>
  __device__ __forceinline__ void begin_rows() {
#pragma unroll
    for (int i = 0; i < 2 * kColumns * V; ++i) {
      const int e = i / (kColumns * V);
      sum[slot_of(j, first_met(e))][e][i / V % kColumns][i % V] = 0.0f;
    }
  }

  // Row v of the task, where v % kRing == j. Returns whether another follows.
  template <int j>
  __device__ __forceinline__ bool step(int v, Ring& ring, const RowsTask& at, const TmaRowsShape& g,
                                       int height) {
    const int row = v - at.above;
    if (row >= 0 && row < at.rows) {
      if (left == 0) {
        dy = ring.wait(g) + first;
        left = min(g.stage_rows, at.rows - row);
      }
      add_row<j>();
      dy += dy_row;
      if (--left == 0) ring.release(g);
    } else {
      begin_rows<j>();
    }
    if (v >= kRing - 1) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (static_cast<unsigned>(h) < static_cast<unsigned>(height)) {
          store_row<V>(dx, dx_pixel, inside, sum[slot_of(j, 0)][e]);
        }
        dx = offset_by(dx, dx_row);
        ++h;
      }
    }
    return v + 1 < at.steps;
  }

  template <int... j>
  __device__ __forceinline__ void walk(Ring& ring, const RowsTask& at, const TmaRowsShape& g, int height,
                                       std::integer_sequence<int, j...>) {
#pragma unroll
    for (int i = 0; i < kRing * 2 * kColumns * V; ++i) {
      sum[i / (2 * kColumns * V)][i / (kColumns * V) % 2][i / V % kColumns][i % V] = 0.0f;
    }
    for (int v = 0; (step<j>(v + j, ring, at, g, height) && ...); v += kRing) {
    }
  }
};

template <class T, int kR, int kShift>
__global__ __launch_bounds__(Config<T, kR, kShift>::kThreads, 2) void depthwise_conv2d_dgrad_tma_rows_kernel(
    const __grid_constant__ CUtensorMap source,  // dy [N,P,Q,C]
    const T* __restrict__ w,                     // [R,R,C]
    T* __restrict__ dx,                          // [N,H,W,C]
    const __grid_constant__ TmaRowsShape g, const __grid_constant__ Pixels pixels) {
  using Config = Config<T, kR, kShift>;
  constexpr int V = Config::kVector;
  extern __shared__ unsigned char raw[];
  const RowsTask at = RowsTask::make<Config::kCells, V>(g, Config::kRing);
  RowsRing<1, false> ring(raw, g, at, &source, nullptr);
  Walk<T, Config> walk;
  load_vector_taps(walk.taps, w, g.c, at.c, false);
  walk.pixel = g.channels * static_cast<int>(sizeof(T));
  walk.dy_row = g.box_w * walk.pixel;
  walk.first = at.first_byte<T, V>(g.stage_rows, g.box_w, at.strip_column, walk.pixel);
  walk.left = 0;
  walk.dx_pixel = g.c * static_cast<unsigned>(sizeof(T));
  walk.dx_row = pixels.w * walk.dx_pixel;
  const int h0 = pixels.first_h + 2 * at.row, w0 = pixels.first_w + 2 * (at.column + at.strip_column);
  const unsigned inside = at.works ? pixels_inside<2 * Config::kCells>(w0, pixels.w) : 0;
  for (int n = at.image; n < g.n; n += at.images_apart) {
    const int image = n + static_cast<int>(threadIdx.z);
    walk.inside = image < g.n ? inside : 0;
    walk.h = h0;
    walk.dx = dx + ((static_cast<ptrdiff_t>(image) * pixels.h + h0) * pixels.w + w0) * g.c + at.c;
    walk.walk(ring, at, g, pixels.h, std::make_integer_sequence<int, Config::kRing>());
  }
}

template <class T, int kR, int kShift>
Plan<DepthwiseConv2dDgrad::Args> plan_cells(const DepthwiseConv2dProblem& p, const TmaRowsPlan& plan,
                                            const Pixels& pixels) {
  const auto kernel = depthwise_conv2d_dgrad_tma_rows_kernel<T, kR, kShift>;
  allow_shared_memory(kernel);
  using Args = DepthwiseConv2dDgrad::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const TmaRowsShape& g = plan.shape;
    const CUtensorMap source =
        make_box_map<T>(a.dy, {p.n, p.p(), p.q(), p.c}, {g.images, g.stage_rows, g.box_w, g.channels});
    return Bound([=](Stream stream) {
      kernel<<<rows_dim(plan.grid), rows_dim(plan.block), plan.smem_bytes, cuda_stream(stream)>>>(
          source, static_cast<const T*>(a.w), static_cast<T*>(a.dx), plan.shape, pixels);
      check_launch("depthwise_conv2d_dgrad_tma_rows_kernel");
    });
  });
}

// The shift only saves a cell a row; it needs a filter whose taps it leaves in the ring.
int shift_of(const DepthwiseConv2dProblem& p) { return p.r == 3 && p.pad_w % 2 == 1 ? 1 : 0; }

TmaRowsSweep cell_sweep(const DepthwiseConv2dProblem& p) {
  const int ring = (p.r + 1) / 2, shift = shift_of(p), vector = p.r == 3 && p.dtype == DType::kBF16 ? 4 : 2;
  const int first_pair = p.pad_h / 2, first_cell = (p.pad_w - shift) / 2, cells = Config<float, 3, 0>::kCells;
  return {.n = p.n,
          .c = p.c,
          .height = (p.h - 1 + p.pad_h) / 2 - first_pair + 1,
          .width = (p.w - 1 + p.pad_w - shift) / 2 - first_cell + 1,
          .source_h = p.p(),
          .source_w = p.q(),
          .step = 1,
          .window = ring,
          .origin_h = first_pair - (ring - 1),
          .origin_w = first_cell + shift - (ring - 1),
          .columns = cells,
          .vector = vector,
          .threads = p.r == 3 ? Config<float, 3, 0>::kThreads : Config<float, 5, 0>::kThreads,
          .element_bytes = static_cast<int>(size_of(p.dtype)),
          .loads_swept = false,
          .stored_pixels = 4,
          .row_slots = 1.0 * p.r * p.r * cells * vector + (cells + ring - 1) * (2.0 + vector) +
                       4 * cells * (3.0 + vector / 2) + 20};
}

template <class T>
Plan<DepthwiseConv2dDgrad::Args> plan_stride_2(const DepthwiseConv2dProblem& p, const Device& device,
                                               std::string_view config) {
  const int shift = shift_of(p);
  const Pixels pixels = {p.h, p.w, p.pad_h / 2 * 2 - p.pad_h, (p.pad_w - shift) / 2 * 2 + shift - p.pad_w};
  const TmaRowsPlan plan = plan_tma_rows(cell_sweep(p), device, config);
  if (p.r == 5) return plan_cells<T, 5, 0>(p, plan, pixels);
  return shift == 1 ? plan_cells<T, 3, 1>(p, plan, pixels) : plan_cells<T, 3, 0>(p, plan, pixels);
}

}  // namespace

extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_tma_rows = {
    .name = "tma_rows",
    .supports = tma_tile_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          if (p.stride_h == 1) {
            return plan_depthwise_turned(
                plan_tma_rows_correlation(depthwise_turned(p), true, device, config));
          }
          return p.dtype == DType::kBF16 ? plan_stride_2<bf16>(p, device, config)
                                         : plan_stride_2<float>(p, device, config);
        },
    .configs =
        [](const DepthwiseConv2dProblem& p, const Device& device) {
          return p.stride_h == 1 ? tma_rows_correlation_configs(depthwise_turned(p), device)
                                 : tma_rows_configs(cell_sweep(p), device);
        },
    .preferred =
        [](const DepthwiseConv2dProblem& p, const Device& device) {
          if (!tma_dgrad_preferred(p)) return false;
          if (p.stride_h == 1) {
            const DepthwiseConv2dProblem turned = depthwise_turned(p);
            return tma_rows_correlation_cycles(turned, device) <= tma_tile_correlation_cycles(turned, device);
          }
          return tma_rows_cycles(cell_sweep(p), device) <= tma_tile_dgrad_cycles(p, device);
        }};

}  // namespace kiln
