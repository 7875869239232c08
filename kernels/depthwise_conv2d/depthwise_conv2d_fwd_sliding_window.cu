// depthwise_conv2d fwd: y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*st+r-ph, q*st+s-pw, c] * w[r,s,c]; with the
// filter turned also dgrad at stride 1.
//
// A thread owns a pair of channels and kColumns neighbouring columns of y and walks down the rows of its task
// (depthwise_conv2d_tile.cuh). Stage k takes the kStride input rows from k*kStride on, each pixel loaded
// once, and adds them to the kRing output rows they belong to, whose sums are in registers; the oldest is
// then complete and stored. kBuffers stages are in flight. Filter and sums are fp32. Shared memory: 15 KiB
// for 5x5 at stride 1 in bf16 (taps for which there are no registers), else none. Channels even, filter 3x3
// or 5x5, stride 1 or 2. Deterministic. Mirrors cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

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
  static constexpr int kBuffers = kStride == 1 ? (kR == 3 ? 3 : 2) : (kR == 3 && sizeof(T) == 2 ? 2 : 1);
  static constexpr bool kBf16 = sizeof(T) == 2;
  static constexpr bool kTight = kR == 5 && kStride == 1 && kBf16;  // short of registers
  static constexpr int kBlocks = kTight || (kR == 3 && kBf16) ? 4
                                 : kR == 3 || kBf16           ? 3
                                                              : 2;  // a multiprocessor
  // Filter rows whose taps are in registers; those of the others are in shared memory.
  static constexpr int kTapRows = kTight ? 2 : kR;
  static constexpr int kSharedTaps = (kR - kTapRows) * kR;
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

// What a thread holds while it walks down. Everything but the numbers is indexed by constants: registers.
template <class T, int kR, int kStride>
struct Walk {
  using Config = Config<T, kR, kStride>;
  static constexpr int kRing = Config::kRing, kInputs = Config::kInputs;

  const T* x;                    // pixel (h0, w0) of the thread's image, its channels; may lie outside
  T* y;                          // first output pixel
  unsigned x_row, y_row, pixel;  // bytes from a row of x, of y, from a pixel to the next
  int top, bottom;               // rows of the strip that are read: top <= row < bottom, row 0 is h0
  int count;                     // output rows
  unsigned in, out;              // columns inside the image
  float2 start;                  // bias
  float2 taps[Config::kTapRows][kR];
  unsigned shared_taps;  // shared memory address of the thread's first tap, kThreads float2 to the next
  PixelRow<T, kInputs> stage[Config::kBuffers][kStride];
  float2 sum[kRing][kColumns];

  template <int kBuffer>
  __device__ __forceinline__ void load(int k) {
#pragma unroll
    for (int e = 0; e < kStride; ++e) {
      const int row = k * kStride + e;
      if ((kStride == 1 || row >= top) && row < bottom) {  // at stride 1 the walk begins at top
        stage[kBuffer][e].load(offset_by(x, static_cast<ptrdiff_t>(x_row) * row), pixel, in);
      } else if (kStride > 1) {
        stage[kBuffer][e].clear();  // the other row of the stage may be inside
      }
    }
  }

  // Where tap i is in shared memory, in bytes from the thread's first.
  static __host__ __device__ constexpr unsigned tap_at(int i) {
    return (i - Config::kTapRows * kR) * kThreads * static_cast<unsigned>(sizeof(float2));
  }

  template <int r>
  __device__ __forceinline__ void tap_row(float2 (&row)[kR]) const {
#pragma unroll
    for (int s = 0; s < kR; ++s) {
      if constexpr (r < Config::kTapRows) {
        row[s] = taps[r][s];
      } else {
        row[s] = load_own(shared_taps + tap_at(r * kR + s));
      }
    }
  }

  // Adds input row e of a stage under filter rows r, r + kStride, ...; slot j has the newest output row.
  template <int j, int r>
  __device__ __forceinline__ void add_row(const float2 (&x_row)[kInputs]) {
    float2 w[kR];
    tap_row<r>(w);
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        const int s = i - t * kStride;
        if (s >= 0 && s < kR) fma_pair(sum[(j - r / kStride + kRing) % kRing][t], x_row[i], w[s]);
      }
    }
    if constexpr (r + kStride < kR) add_row<j, r + kStride>(x_row);
  }

  __device__ __forceinline__ void store(int row, const float2 (&v)[kColumns]) {
    store_pixels(offset_by(y, static_cast<ptrdiff_t>(y_row) * row), pixel, out, v);
  }

  // Stage k, whose newest output row is in slot j. Returns whether it was the last.
  template <int j>
  __device__ __forceinline__ bool step(int k) {
    const int done = k - (kRing - 1);  // the output row that is complete after this stage
    if (k * kStride >= bottom) {       // no more input: what is left is complete
#pragma unroll
      for (int d = 0; d < kRing - 1; ++d) {
        if (done + d >= 0 && done + d < count) store(done + d, sum[(j + 1 + d) % kRing]);
      }
      return true;
    }
    constexpr int kBuffer = j % Config::kBuffers;
#pragma unroll
    for (int t = 0; t < kColumns; ++t) sum[j][t] = start;
    float2 x_rows[kStride][kInputs];
#pragma unroll
    for (int i = 0; i < kStride * kInputs; ++i) {
      x_rows[i / kInputs][i % kInputs] = stage[kBuffer][i / kInputs].at[i % kInputs].value();
      if (Config::kTight) keep(x_rows[i / kInputs][i % kInputs]);
    }
    if (Config::kTight) load<kBuffer>(k + Config::next_use(j));
    add_row<j, 0>(x_rows[0]);
    if constexpr (kStride == 2) add_row<j, 1>(x_rows[1]);
    if (!Config::kTight) load<kBuffer>(k + Config::next_use(j));
    if (done >= 0) store(done, sum[(j + 1) % kRing]);
    return false;
  }

  template <int... j>
  __device__ __forceinline__ void walk(int k, std::integer_sequence<int, j...>) {
    while (!(step<j>(k + j) || ...)) k += kRing;
  }
  template <int... b>
  __device__ __forceinline__ void load_first(int k, std::integer_sequence<int, b...>) {
    (load<b>(k + b), ...);
  }
};

template <class T, int kR, int kStride>
__global__
__launch_bounds__(kThreads, Config<T, kR, kStride>::kBlocks) void depthwise_conv2d_fwd_sliding_window_kernel(
    const T* __restrict__ x,         // [N,H,W,C]
    const T* __restrict__ w,         // [R,R,C]
    const float* __restrict__ bias,  // [C] or null
    T* __restrict__ y,               // [N,P,Q,C]
    const __grid_constant__ Shape g) {
  using Config = Config<T, kR, kStride>;
  const DepthwisePlace at = depthwise_place(g.tile);
  if (at.pair >= g.tile.pairs || at.strip >= g.tile.strips || at.task >= g.tile.tasks) return;
  const int c = 2 * at.pair, n = at.task / g.row_tasks;
  const int p0 = (at.task - n * g.row_tasks) * g.rows, q0 = at.strip * kColumns;
  const int h0 = p0 * kStride - g.pad_h, w0 = q0 * kStride - g.pad_w;

  Walk<T, kR, kStride> walk;
  walk.count = min(g.rows, g.p - p0);
  walk.top = max(0, -h0);
  walk.bottom = min(g.h - h0, (walk.count - 1) * kStride + kR);
  walk.x = x + ((static_cast<ptrdiff_t>(n) * g.h + h0) * g.w + w0) * g.c + c;
  walk.y = y + ((static_cast<ptrdiff_t>(n) * g.p + p0) * g.q + q0) * g.c + c;
  walk.pixel = g.c * sizeof(T);
  walk.x_row = g.w * walk.pixel;
  walk.y_row = g.q * walk.pixel;
  walk.in = pixels_inside<Config::kInputs>(w0, g.w);
  walk.out = pixels_inside<kColumns>(q0, g.q);
  keep(walk.in);
  keep(walk.out);
#pragma unroll
  for (int b = 0; b < Config::kBuffers; ++b) {
#pragma unroll
    for (int e = 0; e < kStride; ++e) walk.stage[b][e].clear();
  }
  const int first = walk.top / kStride;  // the first stage inside the image
  walk.load_first(first, std::make_integer_sequence<int, Config::kBuffers>());
  __shared__ float2 shared_taps[Config::kSharedTaps + 1][kThreads];
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  walk.shared_taps = static_cast<unsigned>(__cvta_generic_to_shared(&shared_taps[0][thread]));
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) {
    ChannelPair<T> tap;
    tap.load(w + (g.turned ? kR * kR - 1 - i : i) * g.c + c);
    float2 value = tap.value();
    keep(value);
    if (i < Config::kTapRows * kR) {
      walk.taps[i / kR][i % kR] = value;
    } else {
      store_own(walk.shared_taps + walk.tap_at(i), value);
    }
  }
  walk.start = bias ? *reinterpret_cast<const float2*>(bias + c) : float2{0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < Config::kRing * kColumns; ++i) walk.sum[i / kColumns][i % kColumns] = walk.start;
  walk.walk(first, std::make_integer_sequence<int, Config::kRing>());
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
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          using Args = DepthwiseConv2dFwd::Args;
          return make_plan<Args>(0, [run = make_depthwise_correlation(p, false, device, config)](
                                        const Args& a, void*, Stream stream) { run(a, stream); });
        },
    .configs = [](const DepthwiseConv2dProblem& p, const Device&) { return depthwise_configs(p.p()); }};

}  // namespace kiln
