// depthwise_conv2d fwd: y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*st+r-ph, q*st+s-pw, c] * w[r,s,c]; with the
// filter turned also dgrad at stride 1.
//
// A thread owns a pair of channels and kColumns neighbouring columns of y and walks down the rows of its task
// (depthwise_conv2d_tile.cuh). Stage k takes the kStride input rows from k*kStride on, each pixel loaded once,
// and adds them to the kRing output rows they belong to, whose sums are in registers; the oldest is then
// complete and stored. kBuffers stages are in flight. Filter and sums are fp32. Rows outside the image cost
// nothing. No shared memory. Channels even, filter 3x3 or 5x5, stride 1 or 2. Deterministic. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_correlation.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 4;  // of a thread

template <class T, int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // input columns under the strip
  static constexpr int kRing = (kR + kStride - 1) / kStride;
  static constexpr int kBuffers = kRing == 3 && kStride == 1 ? 3 : sizeof(T) == 2 || kR == 3 ? 2 : 1;
  // Registers allow as many blocks a multiprocessor.
  static constexpr int kBlocks = kR == 3 ? (sizeof(T) == 2 ? 5 : 4) : (sizeof(T) == 2 ? 4 : 3);
  // Stages from one use of stage j's buffer to the next.
  static __host__ __device__ constexpr int next_use(int j) {
    int d = 1;
    while ((j + d) % kRing % kBuffers != j % kBuffers) ++d;
    return d;
  }
  static_assert(kBuffers <= kRing, "the first kBuffers stages have buffers of their own");
};

struct Shape {
  int h, w, c, p, q;
  int pad_h, pad_w;
  int rows, row_tasks;  // output rows of a task, tasks of an image
  bool turned;
  DepthwiseTile tile;
};

// The input under a thread's strip.
template <class T>
struct Strip {
  const T* x;       // pixel (h0, w0) of the thread's image, its channels; may lie outside
  int h0, h_end;    // rows 0 <= h < h_end are read
  unsigned inside;  // columns
};

template <class Config, class T>
__device__ __forceinline__ void load_stage(PixelRow<T, Config::kInputs> (&stage)[Config::kStride],
                                           const Strip<T>& in, const Shape& g, int k) {
#pragma unroll
  for (int e = 0; e < Config::kStride; ++e) {
    const int row = k * Config::kStride + e;
    if (static_cast<unsigned>(in.h0 + row) < static_cast<unsigned>(in.h_end)) {
      stage[e].load(in.x + static_cast<ptrdiff_t>(row) * (g.w * g.c), g.c, in.inside);
    }
  }
}

// Adds input row e of a stage to the sums; the newest output row is in slot j of the ring.
template <class Config, class T>
__device__ __forceinline__ void add_row(float2 (&sum)[Config::kRing][kColumns],
                                        const PixelRow<T, Config::kInputs>& row,
                                        const float2 (&w)[Config::kR][Config::kR], int j, int e) {
#pragma unroll
  for (int i = 0; i < Config::kInputs; ++i) {
    const float2 x = row.at[i].value();
#pragma unroll
    for (int r = e; r < Config::kR; r += Config::kStride) {
      const int slot = (j - r / Config::kStride + Config::kRing) % Config::kRing;
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        const int s = i - t * Config::kStride;
        if (s >= 0 && s < Config::kR) fma_pair(sum[slot][t], x, w[r][s]);
      }
    }
  }
}

template <class T, int kR, int kStride>
__global__ __launch_bounds__(kThreads, Config<T, kR, kStride>::kBlocks) void
depthwise_conv2d_fwd_sliding_window_kernel(const T* __restrict__ x,         // [N,H,W,C]
                                           const T* __restrict__ w,         // [R,R,C]
                                           const float* __restrict__ bias,  // [C] or null
                                           T* __restrict__ y,               // [N,P,Q,C]
                                           const __grid_constant__ Shape g) {
  using Config = Config<T, kR, kStride>;
  constexpr int kRing = Config::kRing, kBuffers = Config::kBuffers;
  const DepthwisePlace at = depthwise_place(g.tile);
  if (at.pair >= g.tile.pairs || at.strip >= g.tile.strips || at.task >= g.tile.tasks) return;
  const int c = 2 * at.pair, n = at.task / g.row_tasks;
  const int p0 = (at.task - n * g.row_tasks) * g.rows, q0 = at.strip * kColumns;
  const int count = min(g.rows, g.p - p0);  // output rows
  const int h0 = p0 * kStride - g.pad_h, w0 = q0 * kStride - g.pad_w;
  const Strip<T> in = {x + ((static_cast<ptrdiff_t>(n) * g.h + h0) * g.w + w0) * g.c + c, h0,
                       min(g.h, h0 + (count - 1) * kStride + kR), pixels_inside<Config::kInputs>(w0, g.w)};
  const int first = p0 == 0 ? g.pad_h / kStride : 0;  // stages above the image are left out

  PixelRow<T, Config::kInputs> stage[kBuffers][kStride];
#pragma unroll
  for (int b = 0; b < kBuffers; ++b) {
#pragma unroll
    for (int e = 0; e < kStride; ++e) stage[b][e].clear();
    load_stage<Config>(stage[b], in, g, first + b);
  }
  float2 taps[kR][kR];
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) {
    ChannelPair<T> tap;
    tap.load(w + (g.turned ? kR * kR - 1 - i : i) * g.c + c);
    taps[i / kR][i % kR] = tap.value();
  }
  const float2 start = bias ? *reinterpret_cast<const float2*>(bias + c) : float2{0.0f, 0.0f};
  float2 sum[kRing][kColumns];
#pragma unroll
  for (int i = 0; i < kRing * kColumns; ++i) sum[i / kColumns][i % kColumns] = start;

  T* out = y + ((static_cast<ptrdiff_t>(n) * g.p + p0) * g.q + q0) * g.c + c;
  for (int base = first;; base += kRing) {
#pragma unroll
    for (int j = 0; j < kRing; ++j) {
      const int k = base + j, done = k - (kRing - 1);  // the output row that this stage completes
      if (done >= count) return;
#pragma unroll
      for (int t = 0; t < kColumns; ++t) sum[j][t] = start;
#pragma unroll
      for (int e = 0; e < kStride; ++e) {
        if (static_cast<unsigned>(h0 + k * kStride + e) < static_cast<unsigned>(in.h_end)) {
          add_row<Config>(sum, stage[j % kBuffers][e], taps, j, e);
        }
      }
      load_stage<Config>(stage[j % kBuffers], in, g, k + Config::next_use(j));
      if (done >= 0) {
        T* row = out + static_cast<ptrdiff_t>(done) * (g.q * g.c);
#pragma unroll
        for (int t = 0; t < kColumns; ++t) {
          if (q0 + t < g.q) ChannelPair<T>::store(row + t * g.c, sum[(j + 1) % kRing][t]);
        }
      }
    }
  }
}

template <class T, int kR, int kStride>
void launch(const DepthwiseConv2dFwd::Args& a, const Shape& g, Stream stream) {
  depthwise_conv2d_fwd_sliding_window_kernel<T, kR, kStride>
      <<<g.tile.grid(), g.tile.block(), 0, cuda_stream(stream)>>>(
          static_cast<const T*>(a.x), static_cast<const T*>(a.w), static_cast<const float*>(a.bias),
          static_cast<T*>(a.y), g);
  check_launch("depthwise_conv2d_fwd_sliding_window_kernel");
}

template <class T>
auto launch_for(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? launch<T, 3, 1> : launch<T, 5, 1>;
  return p.r == 3 ? launch<T, 3, 2> : launch<T, 5, 2>;
}

// Whole columns a task, unless that leaves fewer than 3 blocks a multiprocessor.
Shape make_shape(const DepthwiseConv2dProblem& p, bool turned, const Device& device, int rows_wanted) {
  constexpr int kLeastRows = 4;
  Shape g = {.h = p.h,
             .w = p.w,
             .c = p.c,
             .p = p.p(),
             .q = p.q(),
             .pad_h = p.pad_h,
             .pad_w = p.pad_w,
             .rows = 0,
             .row_tasks = 0,
             .turned = turned,
             .tile = {}};
  const int most = rows_wanted ? ceil_div(g.p, std::min(rows_wanted, g.p)) : ceil_div(g.p, kLeastRows);
  for (int row_tasks = rows_wanted ? most : 1; row_tasks <= most; ++row_tasks) {
    g.rows = ceil_div(g.p, row_tasks);
    g.row_tasks = ceil_div(g.p, g.rows);
    g.tile = make_depthwise_tile(p.c / 2, ceil_div(g.q, kColumns), p.n * g.row_tasks, kThreads);
    if (g.tile.grid() >= 3u * static_cast<unsigned>(device.multiprocessors)) break;
  }
  return g;
}

}  // namespace

DepthwiseCorrelation make_depthwise_correlation(const DepthwiseConv2dProblem& p, bool turned,
                                                const Device& device, std::string_view config) {
  const Shape g = make_shape(p, turned, device, depthwise_rows_of_config(config));
  const auto run = p.dtype == DType::kBF16 ? launch_for<bf16>(p) : launch_for<float>(p);
  return [run, g](const DepthwiseConv2dFwd::Args& a, Stream stream) { run(a, g, stream); };
}

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_sliding_window = {
    .name = "sliding_window",
    .supports = depthwise_supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
      using Args = DepthwiseConv2dFwd::Args;
      return make_plan<Args>(0, [run = make_depthwise_correlation(p, false, device, config)](
                                    const Args& a, void*, Stream stream) { run(a, stream); });
    }};

}  // namespace kiln
