// depthwise_conv2d wgrad: dw[r,s,c] = sum_{n,p,q} dy[n,p,q,c] * x[n, p*st+r-ph, q*st+s-pw, c],
// dbias[c] = sum_{n,p,q} dy[n,p,q,c]. On Hopper, fed by the copy engine.
//
// A block owns a slice of channels and walks over its tiles of dy; a tile and the x under it, padding
// included, come into a ring of shared-memory stages by TMA (depthwise_conv2d_tma_tile.cuh). A thread owns a
// pair of channels, kColumns neighbouring columns and some rows of each tile; it keeps R*R pairs of fp32 sums
// over all its tiles, and the kR x-rows under its current dy row in a ring of registers. In the end the block
// adds the threads of a pair, a filter row at a time, through shared memory, in a fixed order, into its part
// of the workspace; the last block of a slice, or a second launch, adds the parts as in tma_rows
// (depthwise_conv2d_wgrad_tma_rows.cu): workspace [parts, R*R(+1), C] fp32. Shared memory and preconditions
// as in fwd (depthwise_conv2d_fwd_tma_tile.cu). Deterministic for a given GPU. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.cuh"

namespace kiln {
namespace {

template <int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kColumns = kStride == 1 ? 4 : 2;          // dy columns of a thread
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // x columns under them
  static constexpr int kBlocks = kR == 3 ? 2 : 1;                // a multiprocessor, for their registers
  static_assert(kR > kStride, "the windows of two rows overlap");
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Window : SourceWindow<T, Config> {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kColumns = Config::kColumns;

  float2 sum[kR][kR];
  float2 bias_sum;
  ChannelPair<T> next_dy[kColumns];  // the dy row of the next step
  const unsigned char* dy;           // the one after it, in shared memory
  int dy_row;                        // bytes from one to the next
  int count;                         // dy rows

  __device__ __forceinline__ void load_step() {
    load_tile_row(next_dy, dy, this->x_pixel);
    dy += dy_row;
    this->load_next();
  }

  // dy row k, where k % kR == j. Returns whether another follows.
  template <int j>
  __device__ __forceinline__ bool step(int k) {
    this->template take_next<j>();
    float2 dy_row[kColumns];
#pragma unroll
    for (int t = 0; t < kColumns; ++t) dy_row[t] = next_dy[t].value();
    const bool more = k + 1 < count;
    if (more) load_step();
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      bias_sum.x += dy_row[t].x;
      bias_sum.y += dy_row[t].y;
#pragma unroll
      for (int i = 0; i < kR * kR; ++i) {
        const int r = i / kR, s = i % kR;
        fma_pair(sum[r][s], this->rows[(j * kStride + r) % kR][t * kStride + s], dy_row[t]);
      }
    }
    return more;
  }

  template <int... j>
  __device__ __forceinline__ void walk(std::integer_sequence<int, j...>) {
    for (int k = 0; (step<j>(k + j) && ...); k += kR) {
    }
  }
};

// Adds kCount sums of a thread over the block's tasks, in their order, and writes them to kCount rows of the
// block's part, [C] apart. All threads of the block; those that own no task add zeros.
template <int kCount>
__device__ __forceinline__ void add_tasks(const float2 (&sums)[kCount], float* part, const TmaTileShape& g,
                                          const TileTask& task, int first_channel, float2* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // what was in shared memory has been read
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[i * kTmaTileThreads + thread] = sums[i];
  __syncthreads();
  for (int o = thread; o < kCount * g.pairs; o += kTmaTileThreads) {
    const int i = o / g.pairs, pair = o - i * g.pairs, c = first_channel + 2 * pair;
    if (c >= g.c) continue;
    const float2* from = shared + i * kTmaTileThreads + pair;
    float2 total = from[0];
    for (int t = 1; t < task.tasks; ++t) {
      total.x += from[t * g.pairs].x;
      total.y += from[t * g.pairs].y;
    }
    *reinterpret_cast<float2*>(part + i * g.c + c) = total;
  }
}

// A consumer thread's sums over all tiles of its block.
template <class T, class Config>
__device__ __forceinline__ void sum_tiles(Window<T, Config>& window, TileRing ring, const TileTask& task,
                                          const TmaTileShape& g) {
  window.x_pixel = g.channels * static_cast<int>(sizeof(T));
  window.x_row = g.box_w * window.x_pixel;
  window.dy_row = g.columns * window.x_pixel;
  const int pair_at = task.pair * 2 * static_cast<int>(sizeof(T));
  const int x_first =
      ((task.image * g.box_h + task.row * Config::kStride) * g.box_w + task.column * Config::kStride) *
          window.x_pixel +
      pair_at;
  const int dy_first =
      g.swept_at + ((task.image * g.rows + task.row) * g.columns + task.column) * window.x_pixel + pair_at;
  for (; !ring.done(g); ring.next(g)) {
    const TileCorner at(g, ring.index);
    window.count = task.works ? task.rows_at(g, at) : 0;
    const unsigned char* tile = ring.wait(g);
    if (window.count > 0) {
      window.x = tile + x_first;
      window.dy = tile + dy_first;
      window.load_above();
      window.load_step();
      window.walk(std::make_integer_sequence<int, Config::kR>());
    }
  }
}

template <class T, int kR, int kStride>
__global__
__launch_bounds__(kTmaTileThreads, Config<kR, kStride>::kBlocks) void depthwise_conv2d_wgrad_tma_tile_kernel(
    const __grid_constant__ CUtensorMap source,  // x [N,H,W,C]
    const __grid_constant__ CUtensorMap swept,   // dy [N,P,Q,C]
    float* __restrict__ partial,                 // [parts,sums,C]
    unsigned* __restrict__ arrived,              // [slices], or null: a second launch adds the parts
    float* __restrict__ dw,                      // [R,R,C]
    float* __restrict__ dbias,                   // [C] or null
    const __grid_constant__ TmaTileShape g, bool bias) {
  using Config = Config<kR, kStride>;
  extern __shared__ unsigned char raw[];
  allow_next_launch();
  const TileRing ring(raw, g, &source, &swept);
  const TileTask task(g, Config::kColumns, ring.channel);
  Window<T, Config> window;
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) window.sum[i / kR][i % kR] = {0.0f, 0.0f};
  window.bias_sum = {0.0f, 0.0f};
  sum_tiles(window, ring, task, g);
  // Every tile that was asked for has arrived and been read after the barrier in add_tasks: the stages'
  // memory is free.
  float2* shared = reinterpret_cast<float2*>(ring.stages);
  float* part = partial + static_cast<size_t>(ring.index) * (kR * kR + (bias ? 1 : 0)) * g.c;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    add_tasks(window.sum[r], part + r * kR * g.c, g, task, ring.channel, shared);
  }
  if (bias) {
    const float2 bias_sum[1] = {window.bias_sum};
    add_tasks(bias_sum, part + kR * kR * g.c, g, task, ring.channel, shared);
  }
  if (arrived == nullptr) return;
  const WgradSlice slice = {.parts = g.blocks,
                            .rows = kR * kR + (bias ? 1 : 0),
                            .filter_rows = kR * kR,
                            .c = g.c,
                            .first = ring.channel,
                            .width = min(g.channels, g.c - ring.channel)};
  add_parts_in_last_block(partial, slice, arrived + ring.channel / g.channels, dw, dbias,
                          reinterpret_cast<float4*>(shared), static_cast<int>(threadIdx.x), kTmaTileThreads);
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
          .loads_swept = true,
          .stored_pixels = 0,
          .pixel_slots = 2.0 * Config::kR * Config::kR + 5,
          .window_slots = 3.0 * Config::kInputs,
          .least_smem = Config::kR * kTmaTileThreads * static_cast<int>(sizeof(float2))};
}

TmaSweep sweep(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? sweep_with<Config<3, 1>>(p) : sweep_with<Config<5, 1>>(p);
  return p.r == 3 ? sweep_with<Config<3, 2>>(p) : sweep_with<Config<5, 2>>(p);
}

template <class T, int kR, int kStride>
Plan<DepthwiseConv2dWgrad::Args> plan_filter(const DepthwiseConv2dProblem& p, const TmaTilePlan& plan) {
  const auto kernel = depthwise_conv2d_wgrad_tma_tile_kernel<T, kR, kStride>;
  allow_shared_memory(kernel);
  const DepthwiseWgradSum sum = {.parts = plan.shape.blocks,
                                 .elements = (kR * kR + (p.bias ? 1 : 0)) * p.c,
                                 .filter = kR * kR * p.c,
                                 .slices = plan.shape.slices,
                                 .slice_elements = (kR * kR + (p.bias ? 1 : 0)) * plan.shape.channels,
                                 .threads = kTmaTileThreads};
  const auto counters = depthwise_wgrad_counters(sum);
  using Args = DepthwiseConv2dWgrad::Args;
  return Plan<Args>(
      sizeof(float) * sum.parts * static_cast<size_t>(sum.elements), [=](const Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const TmaTileShape& g = plan.shape;
        const CUtensorMap source =
            make_box_map<T>(a.x, {p.n, p.h, p.w, p.c}, {g.images, g.box_h, g.box_w, g.channels});
        const CUtensorMap swept =
            make_box_map<T>(a.dy, {p.n, p.p(), p.q(), p.c}, {g.images, g.rows, g.columns, g.channels});
        float *partial = static_cast<float*>(workspace), *dw = static_cast<float*>(a.dw);
        float* dbias = static_cast<float*>(a.dbias);
        return Bound([=](Stream stream) {
          unsigned* arrived = counters ? static_cast<unsigned*>(counters->data()) : nullptr;
          kernel<<<plan.grid, kTmaTileThreads, plan.smem_bytes, cuda_stream(stream)>>>(
              source, swept, partial, arrived, dw, dbias, plan.shape, p.bias);
          check_launch("depthwise_conv2d_wgrad_tma_tile_kernel");
          if (!arrived) launch_depthwise_wgrad_sum_early(sum, partial, dw, dbias, stream);
        });
      });
}

template <class T>
auto plan_for(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? plan_filter<T, 3, 1> : plan_filter<T, 5, 1>;
  return p.r == 3 ? plan_filter<T, 3, 2> : plan_filter<T, 5, 2>;
}

}  // namespace

extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_tma_tile = {
    .name = "tma_tile",
    .supports = tma_tile_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          const TmaTilePlan plan = plan_tma_tile(sweep(p), device, config);
          return p.dtype == DType::kBF16 ? plan_for<bf16>(p)(p, plan) : plan_for<float>(p)(p, plan);
        },
    .configs = [](const DepthwiseConv2dProblem& p,
                  const Device& device) { return tma_tile_configs(sweep(p), device); },
    .preferred = [](const DepthwiseConv2dProblem& p, const Device&) { return p.r == 3; }};

double tma_tile_wgrad_cycles(const DepthwiseConv2dProblem& p, const Device& device) {
  return tma_tile_cycles(sweep(p), device);
}

}  // namespace kiln
