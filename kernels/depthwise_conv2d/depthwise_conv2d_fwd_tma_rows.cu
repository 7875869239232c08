// depthwise_conv2d fwd: y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*st+r-ph, q*st+s-pw, c] * w[r,s,c]; with the
// filter turned also dgrad at stride 1. On Hopper, rows of x streamed by the copy engine.
//
// A block owns a slice of channels, some columns and rows of y and every so many-th image; the rows of x
// under them come into a ring of shared-memory stages by TMA, each once (depthwise_conv2d_tma_rows.cuh). A
// thread owns 8 bytes of channels (5x5: two channels) and kColumns neighbouring columns and walks down: a row
// of x is unpacked once and added to the kRing rows of y that it belongs to, whose sums are in registers; the
// oldest is then complete and stored. Rows of padding are never touched, columns of padding arrive as zeros.
// Shared memory: the stages, at most 227 KiB a multiprocessor. Needs compute capability 9.0, channels in
// multiples of 16 bytes, a 3x3 or 5x5 filter, stride 1 or 2. Deterministic. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_rows.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.h"

namespace kiln {
namespace {

template <class T, int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kVector = kRowsVector<T, kR>;
  static constexpr int kThreads =
      kR == 3 || sizeof(T) == 2 ? 256 : 192;                     // of a block at most, for their registers
  static constexpr int kColumns = 4;                             // of a thread
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // x columns under them
  static constexpr int kRing = (kR + kStride - 1) / kStride;     // y rows that a row of x belongs to
  static constexpr int kPeriod = kRing * kStride;                // x rows until the slots are the same again
  static_assert(kR % 2 == 1 && kR > kStride, "a y row is complete with an x row that begins another");
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Walk {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kRing = Config::kRing;
  static constexpr int kColumns = Config::kColumns, V = Config::kVector;
  using Channels = ChannelVector<T, V>;
  using Ring = RowsRing<kStride, false>;

  float taps[kR][kR][V];
  float sum[kRing][kColumns][V];  // y row p of the task is in slot p % kRing
  uint32_t x;                     // the thread's x of its next row, in shared memory
  int first, pixel, x_row;        // bytes from a stage's begin to the thread's x, from one to the next
  int left;                       // rows of this stage that are not read yet
  const float* bias;              // of channel 0, or null
  int c;                          // the thread's first channel
  T* y;                           // first pixel of the y row that is stored next
  unsigned y_pixel, y_row;        // bytes from one to the next
  unsigned inside;                // columns that are stored

  // Adds x row v of the task, where v % kPeriod == j.
  template <int j>
  __device__ __forceinline__ void add_row() {
#pragma unroll
    for (int i = 0; i < Config::kInputs; ++i) {
      Channels packed;
      float value[V];
      packed.load_shared(x + i * pixel);
      packed.value(value);
#pragma unroll
      for (int r = j % kStride; r < kR; r += kStride) {
        const int slot = (j - r + Config::kPeriod) / kStride % kRing;
#pragma unroll
        for (int t = 0; t < kColumns; ++t) {
          const int s = i - t * kStride;
          if (s < 0 || s >= kR) continue;
#pragma unroll
          for (int k = 0; k < V; ++k) {
            const float before = r == 0 && s == 0 ? 0.0f : sum[slot][t][k];  // the first of its row
            sum[slot][t][k] = fmaf(value[k], taps[r][s][k], before);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store(float (&row)[kColumns][V]) {
    if (bias) {  // read again for each row: registers are what a thread has least of
#pragma unroll
      for (int i = 0; i < kColumns * V; ++i) row[i / V][i % V] += __ldg(bias + c + i % V);
    }
    store_row<V>(y, y_pixel, inside, row);
    y = offset_by(y, y_row);
  }

  // Row v of the task, where v % kPeriod == j. Returns whether another follows.
  template <int j>
  __device__ __forceinline__ bool step(int v, Ring& ring, const RowsTask& at, const TmaRowsShape& g) {
    const int row = v - at.above;
    if (row >= 0 && row < at.rows) {
      if (left == 0) {
        x = ring.wait(g) + first;
        left = min(g.stage_rows, at.rows - row);
      }
      add_row<j>();
      x += x_row;
      if (--left == 0) ring.release(g);
    }
    if constexpr (j % kStride == (kR - 1) % kStride) {
      constexpr int kDone = (j - (kR - 1) + Config::kPeriod) / kStride % kRing;
      if (v >= kR - 1) store(sum[kDone]);
    }
    return v + 1 < at.steps;
  }

  template <int... j>
  __device__ __forceinline__ void walk(Ring& ring, const RowsTask& at, const TmaRowsShape& g,
                                       std::integer_sequence<int, j...>) {
#pragma unroll
    for (int i = 0; i < kRing * kColumns * V; ++i) sum[i / (kColumns * V)][i / V % kColumns][i % V] = 0.0f;
    for (int v = 0; (step<j>(v + j, ring, at, g) && ...); v += Config::kPeriod) {
    }
  }
};

template <class T, int kR, int kStride>
__global__ __launch_bounds__(Config<T, kR, kStride>::kThreads, 2) void depthwise_conv2d_fwd_tma_rows_kernel(
    const __grid_constant__ CUtensorMap source,  // x [N,H,W,C]
    const T* __restrict__ w,                     // [R,R,C]
    const float* __restrict__ bias,              // [C] or null
    T* __restrict__ y,                           // [N,P,Q,C]
    const __grid_constant__ TmaRowsShape g, bool turned) {
  using Config = Config<T, kR, kStride>;
  constexpr int V = Config::kVector;
  extern __shared__ unsigned char raw[];
  const RowsTask at = RowsTask::make<Config::kColumns, V>(g, kR);
  RowsRing<kStride, false> ring(raw, g, at, &source, nullptr);
  Walk<T, Config> walk;
  load_vector_taps(walk.taps, w, g.c, at.c, turned);
  walk.bias = bias;
  walk.c = at.c;
  walk.pixel = g.channels * static_cast<int>(sizeof(T));
  walk.x_row = g.box_w * walk.pixel;
  walk.first = at.first_byte<T, V>(g.stage_rows, g.box_w, at.strip_column * kStride, walk.pixel);
  walk.left = 0;
  walk.y_pixel = g.c * static_cast<unsigned>(sizeof(T));
  walk.y_row = g.width * walk.y_pixel;
  const unsigned inside =
      at.works ? pixels_inside<Config::kColumns>(at.column + at.strip_column, g.width) : 0;
  for (int n = at.image; n < g.n; n += at.images_apart) {
    const int image = n + static_cast<int>(threadIdx.z);
    walk.inside = image < g.n ? inside : 0;
    const size_t row = static_cast<size_t>(image) * g.height + at.row;
    walk.y = y + (row * g.width + at.column + at.strip_column) * g.c + at.c;
    walk.walk(ring, at, g, std::make_integer_sequence<int, Config::kPeriod>());
  }
}

template <class T, int kR, int kStride>
Plan<DepthwiseConv2dFwd::Args> plan_filter(const DepthwiseConv2dProblem& p, bool turned,
                                           const TmaRowsPlan& plan) {
  const auto kernel = depthwise_conv2d_fwd_tma_rows_kernel<T, kR, kStride>;
  allow_shared_memory(kernel);
  using Args = DepthwiseConv2dFwd::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const TmaRowsShape& g = plan.shape;
    const CUtensorMap source =
        make_box_map<T>(a.x, {p.n, p.h, p.w, p.c}, {g.images, g.stage_rows, g.box_w, g.channels});
    return Bound([=](Stream stream) {
      kernel<<<rows_dim(plan.grid), rows_dim(plan.block), plan.smem_bytes, cuda_stream(stream)>>>(
          source, static_cast<const T*>(a.w), static_cast<const float*>(a.bias), static_cast<T*>(a.y),
          plan.shape, turned);
      check_launch("depthwise_conv2d_fwd_tma_rows_kernel");
    });
  });
}

template <class T>
auto plan_for(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? plan_filter<T, 3, 1> : plan_filter<T, 5, 1>;
  return p.r == 3 ? plan_filter<T, 3, 2> : plan_filter<T, 5, 2>;
}

template <class Config>
TmaRowsSweep sweep_with(const DepthwiseConv2dProblem& p) {
  constexpr int kProducts = Config::kR * Config::kR * Config::kColumns * Config::kVector / Config::kStride;
  return {.n = p.n,
          .c = p.c,
          .height = p.p(),
          .width = p.q(),
          .source_h = p.h,
          .source_w = p.w,
          .step = Config::kStride,
          .window = Config::kR,
          .origin_h = -p.pad_h,
          .origin_w = -p.pad_w,
          .columns = Config::kColumns,
          .vector = Config::kVector,
          .threads = Config::kThreads,
          .element_bytes = static_cast<int>(size_of(p.dtype)),
          .loads_swept = false,
          .stored_pixels = 1,
          .row_slots = kProducts + Config::kInputs * (2.0 + Config::kVector) +
                       Config::kColumns * (3.0 + Config::kVector / 2) / Config::kStride + 20};
}

template <class T>
TmaRowsSweep sweep_of(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? sweep_with<Config<T, 3, 1>>(p) : sweep_with<Config<T, 5, 1>>(p);
  return p.r == 3 ? sweep_with<Config<T, 3, 2>>(p) : sweep_with<Config<T, 5, 2>>(p);
}

TmaRowsSweep sweep(const DepthwiseConv2dProblem& p) {
  return p.dtype == DType::kBF16 ? sweep_of<bf16>(p) : sweep_of<float>(p);
}

}  // namespace

Plan<DepthwiseConv2dFwd::Args> plan_tma_rows_correlation(const DepthwiseConv2dProblem& p, bool turned,
                                                         const Device& device, std::string_view config) {
  const TmaRowsPlan plan = plan_tma_rows(sweep(p), device, config);
  return p.dtype == DType::kBF16 ? plan_for<bf16>(p)(p, turned, plan) : plan_for<float>(p)(p, turned, plan);
}

std::vector<std::string> tma_rows_correlation_configs(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_rows_configs(sweep(p), device);
}

double tma_rows_correlation_cycles(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_rows_cycles(sweep(p), device);
}

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_tma_rows = {
    .name = "tma_rows",
    .supports = tma_tile_supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device& device,
               std::string_view config) { return plan_tma_rows_correlation(p, false, device, config); },
    .configs = tma_rows_correlation_configs,
    // 5x5 is bound by issue, where sliding_window has fewer instructions.
    .preferred =
        [](const DepthwiseConv2dProblem& p, const Device& device) {
          return p.r == 3 && tma_rows_correlation_cycles(p, device) <= tma_tile_correlation_cycles(p, device);
        }};

}  // namespace kiln
