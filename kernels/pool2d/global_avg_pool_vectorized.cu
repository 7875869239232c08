// global_avg_pool fwd: y[n,c] = mean_{h,w} x[n,h,w,c];  bwd: dx[n,h,w,c] = dy[n,c] / (H*W).
//
// A block owns `columns` vectors of channels of one image, as `columns` x `rows` threads; a vector is V
// channels, 16 bytes where c is a multiple of that, else one channel. A thread owns one vector in every
// rows-th pixel, so that a row of threads moves contiguous memory. Forward: it sums its pixels in fp32,
// kBatch loads in flight, the rows meet in shared memory (4 * 256 * V bytes, 8 KiB at most) and a thread adds
// one channel over the rows in order. Backward: it divides once and stores. Needs 16-byte aligned tensors
// (make_plan checks). Deterministic. Mirrors cpu_reference/global_avg_pool_naive.cpp.
#include <bit>

#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

constexpr int kMostThreads = 256;
constexpr int kBatch = 8;      // pixels a thread has in flight
constexpr int kTailBatch = 4;  // the same for its last pixels

// How threads lie over an image; columns and rows are powers of two.
struct Layout {
  unsigned pixels, rows;  // unsigned: a step beyond the last pixel does not overflow
  int channels, columns_log2;
  int chunks;  // blocks for one image
};

// The owner of a thread's work. `inside`: its vector exists (the last block of an image may be partly empty).
struct Owner {
  size_t image;  // n
  int chunk_channel, channel;
  unsigned row;
  bool inside;
};

template <int V>
__device__ __forceinline__ Owner owner(const Layout& l) {
  const int n = static_cast<int>(blockIdx.x) / l.chunks;
  const int chunk = static_cast<int>(blockIdx.x) - n * l.chunks;
  const int column = static_cast<int>(threadIdx.x) & ((1 << l.columns_log2) - 1);
  const int begin = (chunk << l.columns_log2) * V;
  const int channel = begin + column * V;
  return {static_cast<size_t>(n), begin, channel, threadIdx.x >> l.columns_log2, channel < l.channels};
}

// Adds kCount pixels, l.rows apart, their loads in flight together. kTail: those beyond the image read its
// last pixel instead and add nothing.
template <class T, int V, int kCount, bool kTail>
__device__ __forceinline__ void add_pixels(const T* __restrict__ first,  // x[n, 0, channel]
                                           const Layout& l, unsigned pixel, float (&sum)[V]) {
  Vec<T, V> batch[kCount];
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    const unsigned at = kTail ? min(pixel + b * l.rows, l.pixels - 1) : pixel + b * l.rows;
    batch[b] = Vec<T, V>::load(first + static_cast<size_t>(at) * l.channels);
  }
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    const bool counts = !kTail || pixel + b * l.rows < l.pixels;
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += counts ? batch[b][j] : 0.0f;
  }
}

// Sums of V channels over every rows-th pixel from the owner's row on.
template <class T, int V>
__device__ __forceinline__ void sum_pixels(const T* __restrict__ x,  // [N,H*W,C]
                                           const Layout& l, const Owner& o, float (&sum)[V]) {
  const T* first = x + o.image * l.pixels * l.channels + o.channel;
  unsigned pixel = o.row;
  for (; pixel + (kBatch - 1) * l.rows < l.pixels; pixel += kBatch * l.rows) {
    add_pixels<T, V, kBatch, false>(first, l, pixel, sum);
  }
  for (; pixel < l.pixels; pixel += kTailBatch * l.rows) {
    add_pixels<T, V, kTailBatch, true>(first, l, pixel, sum);
  }
}

template <class T, int V>
__global__ __launch_bounds__(kMostThreads, 4) void global_avg_pool_fwd_vectorized_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,C]
    const __grid_constant__ Layout l) {
  alignas(16) __shared__ float partial[kMostThreads * V];  // [rows][columns * V]
  const Owner o = owner<V>(l);
  float sum[V] = {};
  if (o.inside) sum_pixels<T, V>(x, l, o, sum);
#pragma unroll
  for (int j = 0; j < V; ++j) partial[threadIdx.x * V + j] = sum[j];
  __syncthreads();  // every row's sums are in place

  const int width = V << l.columns_log2;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float total = 0.0f;
    for (unsigned row = 0; row < l.rows; ++row) total += partial[row * width + i];
    const int channel = o.chunk_channel + i;
    if (channel >= l.channels) return;
    y[o.image * l.channels + channel] = from_float<T>(total / static_cast<float>(l.pixels));
  }
}

template <class T, int V>
__global__ __launch_bounds__(kMostThreads) void global_avg_pool_bwd_vectorized_kernel(
    const T* __restrict__ dy,  // [N,C]
    T* __restrict__ dx,        // [N,H,W,C]
    const __grid_constant__ Layout l) {
  const Owner o = owner<V>(l);
  if (!o.inside) return;
  auto g = Vec<T, V>::load(dy + o.image * l.channels + o.channel);
#pragma unroll
  for (int j = 0; j < V; ++j) g.set(j, g[j] / static_cast<float>(l.pixels));
  T* first = dx + o.image * l.pixels * l.channels + o.channel;
  for (unsigned pixel = o.row; pixel < l.pixels; pixel += l.rows) {
    g.store(first + static_cast<size_t>(pixel) * l.channels);
  }
}

// Columns: the widest power of two up to 32 that divides the vectors of a pixel, where that is 4 (64 bytes)
// or more; else enough for all of them, up to 32.
Layout make_layout(const GlobalAvgPoolProblem& p, int v) {
  const unsigned vectors = static_cast<unsigned>(p.c / v);
  unsigned columns = std::min(32u, vectors & -vectors);
  if (columns < 4) columns = std::bit_ceil(std::min(32u, vectors));
  const unsigned pixels = static_cast<unsigned>(p.h) * p.w;
  const unsigned rows = std::min(kMostThreads / columns, std::bit_ceil(pixels));
  return {.pixels = pixels,
          .rows = rows,
          .channels = p.c,
          .columns_log2 = std::countr_zero(columns),
          .chunks = static_cast<int>(ceil_div(vectors, columns))};
}

Support supports(const GlobalAvgPoolProblem&, const Device&) { return Support::yes(); }

template <class T, int V>
Plan<GlobalAvgPoolFwd::Args> plan_fwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolFwd::Args>(
      0, [n = p.n, l = make_layout(p, V)](const auto& a, void*, Stream stream) {
        global_avg_pool_fwd_vectorized_kernel<T, V>
            <<<grid_for(1LL * n * l.chunks, 1), l.rows << l.columns_log2, 0, cuda_stream(stream)>>>(
                static_cast<const T*>(a.x), static_cast<T*>(a.y), l);
        check_launch("global_avg_pool_fwd_vectorized_kernel");
      });
}

template <class T, int V>
Plan<GlobalAvgPoolBwd::Args> plan_bwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolBwd::Args>(
      0, [n = p.n, l = make_layout(p, V)](const auto& a, void*, Stream stream) {
        global_avg_pool_bwd_vectorized_kernel<T, V>
            <<<grid_for(1LL * n * l.chunks, 1), l.rows << l.columns_log2, 0, cuda_stream(stream)>>>(
                static_cast<const T*>(a.dy), static_cast<T*>(a.dx), l);
        check_launch("global_avg_pool_bwd_vectorized_kernel");
      });
}

}  // namespace

extern const Impl<GlobalAvgPoolFwd> global_avg_pool_fwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const GlobalAvgPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      if (p.dtype == DType::kBF16) return p.c % 8 == 0 ? plan_fwd<bf16, 8>(p) : plan_fwd<bf16, 1>(p);
      return p.c % 4 == 0 ? plan_fwd<float, 4>(p) : plan_fwd<float, 1>(p);
    }};

extern const Impl<GlobalAvgPoolBwd> global_avg_pool_bwd_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const GlobalAvgPoolProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      if (p.dtype == DType::kBF16) return p.c % 8 == 0 ? plan_bwd<bf16, 8>(p) : plan_bwd<bf16, 1>(p);
      return p.c % 4 == 0 ? plan_bwd<float, 4>(p) : plan_bwd<float, 1>(p);
    }};

}  // namespace kiln
