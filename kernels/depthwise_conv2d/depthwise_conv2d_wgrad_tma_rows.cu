// depthwise_conv2d wgrad: dw[r,s,c] = sum_{n,p,q} dy[n,p,q,c] * x[n, p*st+r-ph, q*st+s-pw, c],
// dbias[c] = sum_{n,p,q} dy[n,p,q,c]. On Hopper, rows of x and dy streamed by the copy engine.
//
// Blocks, threads and the ring are fwd's (depthwise_conv2d_fwd_tma_rows.cu); a stage has rows of x and the
// rows of dy that they are the first to meet. A thread keeps R*R sums a channel over all its images, and as
// fp32 the kRing rows of dy that the current row of x meets: each element of either is unpacked once. In the
// end the block adds its threads through shared memory, in a fixed order, into its part of the workspace; the
// last block of a slice adds the slice's parts (depthwise_conv2d_wgrad_sum.cuh) or, where they are too many
// for one, a second launch that is on its way before the first ends (depthwise_conv2d_wgrad_sum.cu):
// workspace [parts, R*R(+1), C] fp32. Deterministic for a given GPU. Mirrors
// cpu_reference/depthwise_conv2d_naive.cpp.
#include <utility>

#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_rows.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_tile.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.cuh"

namespace kiln {
namespace {

template <class T, int kR_, int kStride_>
struct Config {
  static constexpr int kR = kR_, kStride = kStride_;
  static constexpr int kVector = kRowsVector<T, kR>;
  static constexpr int kThreads = 256;                           // of a block at most, for their registers
  static constexpr int kColumns = 4;                             // dy columns of a thread
  static constexpr int kInputs = (kColumns - 1) * kStride + kR;  // x columns under them
  static constexpr int kRing = (kR + kStride - 1) / kStride;     // dy rows that a row of x meets
  static constexpr int kPeriod = kRing * kStride;                // x rows until the slots are the same again
};

// What a thread holds. Everything but the numbers is indexed by constants: registers.
template <class T, class Config>
struct Walk {
  static constexpr int kR = Config::kR, kStride = Config::kStride, kRing = Config::kRing;
  static constexpr int kColumns = Config::kColumns, V = Config::kVector;
  using Channels = ChannelVector<T, V>;
  using Ring = RowsRing<kStride, true>;

  float sum[kR * kR + 1][V];          // of the taps, of dy
  float dy_rows[kRing][kColumns][V];  // dy row p of the task is in slot p % kRing
  uint32_t x, dy;                     // the thread's next row of either, in shared memory
  int x_first, dy_first;              // bytes from a stage's begin to the thread's
  int pixel, x_row, dy_row;           // bytes from one to the next
  int left;                           // x rows of this stage that are not read yet
  bool bias;

  // Takes dy row p of the task into a slot: zeros where there is none.
  template <int slot>
  __device__ __forceinline__ void take_dy(bool exists) {
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      if (exists) {
        Channels packed;
        packed.load_shared(dy + t * pixel);
        packed.value(dy_rows[slot][t]);
      } else {
#pragma unroll
        for (int k = 0; k < V; ++k) dy_rows[slot][t][k] = 0.0f;
      }
    }
    dy += dy_row;
    if (!bias) return;
#pragma unroll
    for (int i = 0; i < kColumns * V; ++i) sum[kR * kR][i % V] += dy_rows[slot][i / V][i % V];
  }

  // Multiplies x row v of the task, where v % kPeriod == j, with the dy rows that meet it.
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
            sum[r * kR + s][k] = fmaf(value[k], dy_rows[slot][t][k], sum[r * kR + s][k]);
          }
        }
      }
    }
  }

  // Row v of the task, where v % kPeriod == j. Returns whether another follows.
  template <int j>
  __device__ __forceinline__ bool step(int v, Ring& ring, const RowsTask& at, const TmaRowsShape& g) {
    if (left == 0) {
      const uint32_t stage = ring.wait(g);
      x = stage + x_first;
      dy = stage + dy_first;
      left = min(g.stage_rows, at.steps - v);
    }
    if constexpr (j % kStride == 0) take_dy<j / kStride>(v < at.count * kStride);
    if (v >= at.above && v < at.above + at.rows) add_row<j>();
    x += x_row;
    if (--left == 0) ring.release(g);
    return v + 1 < at.steps;
  }

  template <int... j>
  __device__ __forceinline__ void walk(Ring& ring, const RowsTask& at, const TmaRowsShape& g,
                                       std::integer_sequence<int, j...>) {
#pragma unroll
    for (int i = 0; i < kRing * kColumns * V; ++i)
      dy_rows[i / (kColumns * V)][i / V % kColumns][i % V] = 0.0f;
    for (int v = 0; (step<j>(v + j, ring, at, g) && ...); v += Config::kPeriod) {
    }
  }
};

// Adds the sums of a thread over the strips and images of the block, in their order, and writes them to
// `rows` rows of the block's part, [C] apart. All threads of the block; shared: [rows * V][threads].
template <int kMostRows, int V>
__device__ __forceinline__ void add_threads(const float (&sums)[kMostRows][V], int rows, float* part,
                                            const TmaRowsShape& g, const RowsTask& at, float* shared) {
  const int tasks = g.strips * g.images, threads = g.groups * tasks;
  __syncthreads();  // what was in shared memory has been read
#pragma unroll
  for (int i = 0; i < kMostRows * V; ++i) {
    if (i / V < rows) shared[i * threads + at.thread] = sums[i / V][i % V];
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x), end = at.works ? rows : 0;
  const int task = static_cast<int>(threadIdx.z) * g.strips + static_cast<int>(threadIdx.y);
#pragma unroll 1
  for (int row = task; row < end; row += tasks) {
    const float* from = shared + row * V * threads + group;
    Vec<float, V> total = {};
#pragma unroll 2
    for (int t = 0; t < tasks; ++t) {
#pragma unroll
      for (int k = 0; k < V; ++k) total.v[k] += from[k * threads + t * g.groups];
    }
    total.store(part + row * g.c + at.c);
  }
}

template <class T, int kR, int kStride>
__global__ __launch_bounds__(Config<T, kR, kStride>::kThreads, 2) void depthwise_conv2d_wgrad_tma_rows_kernel(
    const __grid_constant__ CUtensorMap source,  // x [N,H,W,C]
    const __grid_constant__ CUtensorMap swept,   // dy [N,P,Q,C]
    float* __restrict__ partial,                 // [parts,sums,C]
    unsigned* __restrict__ arrived,              // [slices], or null: a second launch adds the parts
    float* __restrict__ dw,                      // [R,R,C]
    float* __restrict__ dbias,                   // [C] or null
    const __grid_constant__ TmaRowsShape g, bool bias) {
  using Config = Config<T, kR, kStride>;
  constexpr int V = Config::kVector;
  extern __shared__ unsigned char raw[];
  allow_next_launch();
  const RowsTask at = RowsTask::make<Config::kColumns, V>(g, kR);
  RowsRing<kStride, true> ring(raw, g, at, &source, &swept);
  Walk<T, Config> walk;
#pragma unroll
  for (int i = 0; i < (kR * kR + 1) * V; ++i) walk.sum[i / V][i % V] = 0.0f;
  walk.bias = bias;
  walk.pixel = g.channels * static_cast<int>(sizeof(T));
  walk.x_row = g.box_w * walk.pixel;
  walk.dy_row = g.columns * walk.pixel;
  walk.x_first = at.first_byte<T, V>(g.stage_rows, g.box_w, at.strip_column * kStride, walk.pixel);
  walk.dy_first =
      g.swept_at + at.first_byte<T, V>(g.stage_rows / kStride, g.columns, at.strip_column, walk.pixel);
  walk.left = 0;
  for (int n = at.image; n < g.n; n += at.images_apart) {
    walk.walk(ring, at, g, std::make_integer_sequence<int, Config::kPeriod>());
  }
  // Every fill that was started has arrived and been read after the barrier in add_threads: the stages'
  // memory is free.
  float* shared = reinterpret_cast<float*>(raw + (ring.address - smem_address(raw)));
  const size_t index = static_cast<size_t>(blockIdx.z) * g.column_tiles + blockIdx.y;
  const int rows = kR * kR + (bias ? 1 : 0);
  add_threads(walk.sum, rows, partial + index * rows * g.c, g, at, shared);
  if (arrived == nullptr) return;
  const WgradSlice slice = {.parts = static_cast<int>(gridDim.y * gridDim.z),
                            .rows = rows,
                            .filter_rows = kR * kR,
                            .c = g.c,
                            .first = at.channel,
                            .width = min(g.channels, g.c - at.channel)};
  add_parts_in_last_block(partial, slice, arrived + blockIdx.x, dw, dbias, reinterpret_cast<float4*>(shared),
                          at.thread, g.groups * g.strips * g.images);
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
          .loads_swept = true,
          .stored_pixels = 0,
          .row_slots =
              kProducts +
              (Config::kInputs + 1.0 * Config::kColumns / Config::kStride) * (2.0 + Config::kVector) + 20,
          .task_sum_floats = (Config::kR * Config::kR + 1) * Config::kVector};
}

template <class T>
TmaRowsSweep sweep_of(const DepthwiseConv2dProblem& p) {
  if (p.stride_h == 1) return p.r == 3 ? sweep_with<Config<T, 3, 1>>(p) : sweep_with<Config<T, 5, 1>>(p);
  return p.r == 3 ? sweep_with<Config<T, 3, 2>>(p) : sweep_with<Config<T, 5, 2>>(p);
}

TmaRowsSweep sweep(const DepthwiseConv2dProblem& p) {
  return p.dtype == DType::kBF16 ? sweep_of<bf16>(p) : sweep_of<float>(p);
}

template <class T, int kR, int kStride>
Plan<DepthwiseConv2dWgrad::Args> plan_filter(const DepthwiseConv2dProblem& p, const TmaRowsPlan& plan) {
  const auto kernel = depthwise_conv2d_wgrad_tma_rows_kernel<T, kR, kStride>;
  allow_shared_memory(kernel);
  const TmaRowsShape& shape = plan.shape;
  const DepthwiseWgradSum sum = {.parts = shape.column_tiles * shape.row_tiles * shape.walks,
                                 .elements = (kR * kR + (p.bias ? 1 : 0)) * p.c,
                                 .filter = kR * kR * p.c,
                                 .slices = shape.slices,
                                 .slice_elements = (kR * kR + (p.bias ? 1 : 0)) * shape.channels,
                                 .threads = shape.groups * shape.strips * shape.images};
  const auto counters = depthwise_wgrad_counters(sum);
  using Args = DepthwiseConv2dWgrad::Args;
  return Plan<Args>(
      sizeof(float) * sum.parts * static_cast<size_t>(sum.elements), [=](const Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const TmaRowsShape& g = plan.shape;
        const CUtensorMap source =
            make_box_map<T>(a.x, {p.n, p.h, p.w, p.c}, {g.images, g.stage_rows, g.box_w, g.channels});
        const CUtensorMap swept = make_box_map<T>(a.dy, {p.n, p.p(), p.q(), p.c},
                                                  {g.images, g.stage_rows / kStride, g.columns, g.channels});
        float *partial = static_cast<float*>(workspace), *dw = static_cast<float*>(a.dw);
        float* dbias = static_cast<float*>(a.dbias);
        return Bound([=](Stream stream) {
          unsigned* arrived = counters ? static_cast<unsigned*>(counters->data()) : nullptr;
          kernel<<<rows_dim(plan.grid), rows_dim(plan.block), plan.smem_bytes, cuda_stream(stream)>>>(
              source, swept, partial, arrived, dw, dbias, plan.shape, p.bias);
          check_launch("depthwise_conv2d_wgrad_tma_rows_kernel");
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

extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_tma_rows = {
    .name = "tma_rows",
    .supports = tma_tile_supports,
    .plan =
        [](const DepthwiseConv2dProblem& p, const Device& device, std::string_view config) {
          const TmaRowsPlan plan = plan_tma_rows(sweep(p), device, config);
          return p.dtype == DType::kBF16 ? plan_for<bf16>(p)(p, plan) : plan_for<float>(p)(p, plan);
        },
    .configs = [](const DepthwiseConv2dProblem& p,
                  const Device& device) { return tma_rows_configs(sweep(p), device); },
    // 5x5 keeps two_stage ahead (measured on an H100).
    .preferred =
        [](const DepthwiseConv2dProblem& p, const Device& device) {
          return p.r == 3 && tma_rows_cycles(sweep(p), device) <= tma_tile_wgrad_cycles(p, device);
        }};

}  // namespace kiln
