// depthwise_conv2d fwd: y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*st+r-ph, q*st+s-pw, c] * w[r,s,c]; with the
// filter turned also dgrad at stride 1. On Hopper, fed by the copy engine.
//
// A block owns a slice of channels and walks over its tiles of y; the x under a tile, padding included, comes
// into a ring of shared-memory stages by TMA (depthwise_conv2d_tma_tile.cuh), so that the bytes on their way
// cost no registers. A thread owns a pair of channels, kColumns neighbouring columns and some rows of each
// tile. It keeps the kR x-rows under its current y row as fp32 in a ring of registers: the next y row takes
// the place of the oldest kStride, and every product belongs to a y that is stored. Shared memory: the
// stages, at most 113 KiB (5x5: 226 KiB) a block. Needs compute capability 9.0, channels in multiples of 16
// bytes, a 3x3 or 5x5 filter, stride 1 or 2. Deterministic. Mirrors cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.cuh"

namespace kiln {
namespace {

template <int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kColumns = kStride == 1 ? 4 : 2;          // of a thread
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // x columns under them
  static constexpr int kBlocks = kR == 3 ? 2 : 1;                // a multiprocessor, for their registers
  static_assert(kR > kStride, "the windows of two rows overlap");
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Window : SourceWindow<T, Config> {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kColumns = Config::kColumns;

  float2 taps[kR][kR];
  float2 start;             // bias
  T* y;                     // first pixel of the y row
  unsigned y_pixel, y_row;  // bytes from one to the next
  unsigned out;             // columns inside the map
  int count;                // y rows

  // y row k, where k % kR == j. Returns whether another follows.
  template <int j>
  __device__ __forceinline__ bool step(int k) {
    this->template take_next<j>();
    const bool more = k + 1 < count;
    if (more) this->load_next();
    float2 sum[kColumns];
#pragma unroll
    for (int t = 0; t < kColumns; ++t) sum[t] = start;
#pragma unroll
    for (int i = 0; i < kR * kR; ++i) {
      const int r = i / kR, s = i % kR;
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        fma_pair(sum[t], this->rows[(j * kStride + r) % kR][t * kStride + s], taps[r][s]);
      }
    }
    store_pixels(y, y_pixel, out, sum);
    y = offset_by(y, y_row);
    return more;
  }

  template <int... j>
  __device__ __forceinline__ void walk(std::integer_sequence<int, j...>) {
    for (int k = 0; (step<j>(k + j) && ...); k += kR) {
    }
  }
};

template <class T, int kR, int kStride>
__global__
__launch_bounds__(kTmaTileThreads, Config<kR, kStride>::kBlocks) void depthwise_conv2d_fwd_tma_tile_kernel(
    const __grid_constant__ CUtensorMap source,  // x [N,H,W,C]
    const T* __restrict__ w,                     // [R,R,C]
    const float* __restrict__ bias,              // [C] or null
    T* __restrict__ y,                           // [N,P,Q,C]
    const __grid_constant__ TmaTileShape g, bool turned) {
  using Config = Config<kR, kStride>;
  extern __shared__ unsigned char raw[];
  TileRing ring(raw, g, &source, nullptr);
  const TileTask task(g, Config::kColumns, ring.channel);
  Window<T, Config> window;
  if (task.works) {
    load_taps(window.taps, w, g.c, task.c, turned);
    window.start = bias ? *reinterpret_cast<const float2*>(bias + task.c) : float2{0.0f, 0.0f};
  }
  window.x_pixel = g.channels * static_cast<int>(sizeof(T));
  window.x_row = g.box_w * window.x_pixel;
  window.y_pixel = g.c * static_cast<unsigned>(sizeof(T));
  window.y_row = g.width * window.y_pixel;
  const int first =  // of the thread's x in a tile
      ((task.image * g.box_h + task.row * kStride) * g.box_w + task.column * kStride) * window.x_pixel +
      task.pair * 2 * static_cast<int>(sizeof(T));
  for (; !ring.done(g); ring.next(g)) {
    const TileCorner at(g, ring.index);
    window.count = task.works ? task.rows_at(g, at) : 0;
    window.out = pixels_inside<Config::kColumns>(at.column + task.column, g.width);
    const unsigned char* tile = ring.wait(g);
    if (window.count > 0) {
      const size_t row = static_cast<size_t>(at.n + task.image) * g.height + at.row + task.row;
      window.y = y + (row * g.width + at.column + task.column) * g.c + task.c;
      window.x = tile + first;
      window.load_above();
      window.load_next();
      window.walk(std::make_integer_sequence<int, kR>());
    }
  }
}

template <class T, int kR, int kStride>
Plan<DepthwiseConv2dFwd::Args> plan_filter(const DepthwiseConv2dProblem& p, bool turned,
                                           const TmaTilePlan& plan) {
  const auto kernel = depthwise_conv2d_fwd_tma_tile_kernel<T, kR, kStride>;
  allow_shared_memory(kernel);
  using Args = DepthwiseConv2dFwd::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const TmaTileShape& g = plan.shape;
    const CUtensorMap source =
        make_box_map<T>(a.x, {p.n, p.h, p.w, p.c}, {g.images, g.box_h, g.box_w, g.channels});
    return Bound([=](Stream stream) {
      kernel<<<plan.grid, kTmaTileThreads, plan.smem_bytes, cuda_stream(stream)>>>(
          source, static_cast<const T*>(a.w), static_cast<const float*>(a.bias), static_cast<T*>(a.y),
          plan.shape, turned);
      check_launch("depthwise_conv2d_fwd_tma_tile_kernel");
    });
  });
}

template <class T>
auto plan_for(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? plan_filter<T, 3, 1> : plan_filter<T, 5, 1>;
  return p.r == 3 ? plan_filter<T, 3, 2> : plan_filter<T, 5, 2>;
}

template <class Config>
TmaSweep sweep_with(const DepthwiseConv2dProblem& p) {
  return {.n = p.n,
          .height = p.p(),
          .width = p.q(),
          .c = p.c,
          .source_h = p.h,
          .source_w = p.w,
          .step = Config::kStride,
          .window = Config::kR,
          .origin_h = -p.pad_h,
          .origin_w = -p.pad_w,
          .columns = Config::kColumns,
          .blocks = Config::kBlocks,
          .element_bytes = static_cast<int>(size_of(p.dtype)),
          .loads_swept = false,
          .stored_pixels = 1,
          .pixel_slots = 2.0 * Config::kR * Config::kR + 4,
          .window_slots = 3.0 * Config::kInputs};
}

TmaSweep sweep(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? sweep_with<Config<3, 1>>(p) : sweep_with<Config<5, 1>>(p);
  return p.r == 3 ? sweep_with<Config<3, 2>>(p) : sweep_with<Config<5, 2>>(p);
}

}  // namespace

Plan<DepthwiseConv2dFwd::Args> plan_tma_tile_correlation(const DepthwiseConv2dProblem& p, bool turned,
                                                         const Device& device, std::string_view config) {
  const TmaTilePlan plan = plan_tma_tile(sweep(p), device, config);
  return p.dtype == DType::kBF16 ? plan_for<bf16>(p)(p, turned, plan) : plan_for<float>(p)(p, turned, plan);
}

std::vector<std::string> tma_tile_correlation_configs(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_tile_configs(sweep(p), device);
}

double tma_tile_correlation_cycles(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_tile_cycles(sweep(p), device);
}

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_tma_tile = {
    .name = "tma_tile",
    .supports = tma_tile_supports,
    .plan = [](const DepthwiseConv2dProblem& p, const Device& device,
               std::string_view config) { return plan_tma_tile_correlation(p, false, device, config); },
    .configs = tma_tile_correlation_configs,
    .preferred = [](const DepthwiseConv2dProblem& p, const Device&) { return p.r == 3; }};

}  // namespace kiln
