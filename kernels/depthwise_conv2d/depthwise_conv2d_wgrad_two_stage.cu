// depthwise_conv2d wgrad: dw[r,s,c] = sum_{n,p,q} dy[n,p,q,c] * x[n, p*st+r-ph, q*st+s-pw, c],
// dbias[c] = sum_{n,p,q} dy[n,p,q,c].
//
// Stage one: a thread owns a pair of channels and kColumns neighbouring columns of dy, and walks down the
// rows of several tasks (depthwise_conv2d_tile.cuh) with R*R pairs of fp32 sums in registers. A step takes
// one dy row, kept as fp32 in a ring of the kRing rows that meet the same x rows, and the kStride new x rows;
// every pixel is loaded once a thread, kBuffers steps ahead. The block then adds the threads of a pair, a
// filter row at a time, through shared memory (R * 2 KiB; 42 KiB for 5x5 in bf16, whose older dy rows are
// there too), in a fixed order, into its part of the workspace. Stage two (depthwise_conv2d_wgrad_sum.cu)
// adds: workspace [parts, R*R(+1), C] fp32. Channels even, filter 3x3 or 5x5, stride 1 or 2. Deterministic
// for a given GPU. Mirrors cpu_reference/depthwise_conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_walk.cuh"

namespace kiln {
namespace {

// Adds kCount sums of a thread's pair over the block's threads of that pair, in a fixed order, and writes
// them to kCount rows of the block's part, [C] apart. Every thread of the block takes part; `shared` has
// kCount rows.
template <int kCount>
__device__ __forceinline__ void add_block(const float2 (&sums)[kCount], float* part, const Shape& g,
                                          int block_c, float2 (*shared)[kThreads]) {
  const int lanes = g.tile.lanes_c, threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  __syncthreads();  // what was in shared memory has been read
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[i][thread] = sums[i];
  __syncthreads();
  for (int o = thread; o < kCount * lanes; o += threads) {
    const int i = o / lanes, lane = o - i * lanes, pair = block_c * lanes + lane;
    float2 total = shared[i][lane];
    for (int t = lane + lanes; t < threads; t += lanes) {
      total.x += shared[i][t].x;
      total.y += shared[i][t].y;
    }
    if (pair < g.tile.pairs) *reinterpret_cast<float2*>(part + i * g.c + 2 * pair) = total;
  }
}

template <class T, int kR, int kStride>
__global__
__launch_bounds__(kThreads, Config<T, kR, kStride>::kBlocks) void depthwise_conv2d_wgrad_two_stage_kernel(
    const T* __restrict__ dy,     // [N,P,Q,C]
    const T* __restrict__ x,      // [N,H,W,C]
    float* __restrict__ partial,  // [parts,sums,C]
    const __grid_constant__ Shape g) {
  using Config = Config<T, kR, kStride>;
  const DepthwisePlace at = depthwise_place(g.tile);
  const bool owns = at.pair < g.tile.pairs && at.strip < g.tile.strips;
  const int c = owns ? 2 * at.pair : 0, strip = owns ? at.strip : 0;

  Walk<T, Config> walk;
  Loader<T, Config>& loader = walk.loader;
  const int q0 = strip * kColumns, w0 = q0 * kStride - g.pad_w;
  loader.x_first = w0 * g.c + c;
  loader.dy_first = q0 * g.c + c;
  loader.inside = pixels_inside<Config::kInputs>(w0, g.w) | pixels_inside<kColumns>(q0, g.q) << 16;
  keep(loader.inside);
  loader.task = owns ? at.task : g.tile.tasks;
  const Inputs<T> from = {x, dy};
  loader.enter(g, from);
#pragma unroll
  for (int i = 0; i < Config::kRing * kColumns; ++i) walk.ring[i / kColumns][i % kColumns] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) walk.sum[i / kR][i % kR] = {0.0f, 0.0f};
  walk.bias_sum = {0.0f, 0.0f};
  __shared__ float2 shared[Config::kSharedPairs][kThreads];
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  walk.shared_ring = static_cast<unsigned>(__cvta_generic_to_shared(&shared[0][thread]));
  if (Config::kTight) {
#pragma unroll
    for (int i = 0; i < Config::kSharedPairs; ++i) {
      store_own(walk.shared_ring + walk.shared_at(0, i), {0.0f, 0.0f});
    }
  }

  const int left = g.tile.tasks - loader.task, lanes = g.tile.blocks_t * g.tile.lanes_t;
  const int tasks = left > 0 ? (left - 1) / lanes + 1 : 0;
  walk.start(g, from, std::make_integer_sequence<int, Config::kBuffers>());
  walk.walk(g, from, tasks, std::make_integer_sequence<int, Config::kRing>());

  if (Config::kTight) walk.bias_sum = load_own(walk.shared_ring + walk.shared_at(Config::kRing, 0));
  const DepthwisePlace block = depthwise_place(g.tile);
  const int part = static_cast<int>(blockIdx.x) / g.tile.blocks_c;  // over strips and tasks
  float* out = partial + static_cast<size_t>(part) * g.sums * g.c;
#pragma unroll
  for (int r = 0; r < kR; ++r) add_block(walk.sum[r], out + r * kR * g.c, g, block.block_c, shared);
  if (g.bias) {
    const float2 bias_sum[1] = {walk.bias_sum};
    add_block(bias_sum, out + kR * kR * g.c, g, block.block_c, shared);
  }
}

// As many task lanes as fill the GPU once, and the rows of a task for which they finish first.
template <class Config>
Shape make_shape(const DepthwiseConv2dProblem& p, const Device& device, int rows_wanted) {
  const unsigned pixel = static_cast<unsigned>(p.c * size_of(p.dtype));
  Shape g = {.h = p.h,
             .w = p.w,
             .c = p.c,
             .p = p.p(),
             .q = p.q(),
             .pad_h = p.pad_h,
             .pad_w = p.pad_w,
             .rows = 0,
             .row_tasks = 0,
             .steps = 0,
             .sums = p.r * p.s + (p.bias ? 1 : 0),
             .pixel = pixel,
             .x_row = pixel * p.w,
             .dy_row = pixel * p.q(),
             .bias = p.bias,
             .tile = {}};
  const int strips = ceil_div(g.q, kColumns);
  const auto tile_for = [&](int row_tasks) {
    DepthwiseTile t = make_depthwise_tile(p.c / 2, strips, p.n * row_tasks, kThreads);
    const int wanted = Config::kBlocks * device.multiprocessors / (t.blocks_c * t.blocks_s);
    t.blocks_t = std::min(t.blocks_t, std::max(1, wanted));
    return t;
  };
  long long best = 0;
  const int most = rows_wanted ? ceil_div(g.p, std::min(rows_wanted, g.p)) : g.p;
  for (int wanted = rows_wanted ? most : 1; wanted <= most; ++wanted) {
    const int rows = ceil_div(g.p, wanted), row_tasks = ceil_div(g.p, rows);
    const int steps = ceil_div(rows + Config::kRing - 1, Config::kRing) * Config::kRing;
    const DepthwiseTile t = tile_for(row_tasks);
    const long long cost = 1LL * ceil_div(t.tasks, t.blocks_t * t.lanes_t) * (steps + 2);
    if (best != 0 && cost >= best) continue;
    best = cost;
    g.rows = rows;
    g.row_tasks = row_tasks;
    g.steps = steps;
    g.tile = t;
  }
  return g;
}

template <class T, int kR, int kStride>
Plan<DepthwiseConv2dWgrad::Args> plan_filter(const DepthwiseConv2dProblem& p, const Device& device,
                                             int rows_wanted) {
  const Shape g = make_shape<Config<T, kR, kStride>>(p, device, rows_wanted);
  const int parts = g.tile.blocks_s * g.tile.blocks_t, elements = g.sums * g.c;
  using Args = DepthwiseConv2dWgrad::Args;
  return make_plan<Args>(sizeof(float) * parts * static_cast<size_t>(elements),
                         [g, parts, elements](const Args& a, void* workspace, Stream stream) {
                           float* partial = static_cast<float*>(workspace);
                           depthwise_conv2d_wgrad_two_stage_kernel<T, kR, kStride>
                               <<<g.tile.grid(), g.tile.block(), 0, cuda_stream(stream)>>>(
                                   static_cast<const T*>(a.dy), static_cast<const T*>(a.x), partial, g);
                           check_launch("depthwise_conv2d_wgrad_two_stage_kernel");
                           launch_depthwise_wgrad_sum(
                               {.parts = parts, .elements = elements, .filter = kR * kR * g.c}, partial,
                               static_cast<float*>(a.dw), static_cast<float*>(a.dbias), stream);
                         });
}

template <class T>
Plan<DepthwiseConv2dWgrad::Args> plan(const DepthwiseConv2dProblem& p, const Device& device, int rows) {
  if (p.stride_h == 1) {
    return p.r == 3 ? plan_filter<T, 3, 1>(p, device, rows) : plan_filter<T, 5, 1>(p, device, rows);
  }
  return p.r == 3 ? plan_filter<T, 3, 2>(p, device, rows) : plan_filter<T, 5, 2>(p, device, rows);
}

}  // namespace

extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_two_stage = {
    .name = "two_stage",
    .supports = depthwise_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          const int rows = depthwise_rows_of_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p, device, rows) : plan<float>(p, device, rows);
        },
    .configs = [](const DepthwiseConv2dProblem& p, const Device&) { return depthwise_configs(p.p()); }};

}  // namespace kiln
