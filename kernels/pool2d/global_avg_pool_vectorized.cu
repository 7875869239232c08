// global_avg_pool fwd: y[n,c] = mean_{h,w} x[n,h,w,c];  bwd: dx[n,h,w,c] = dy[n,c] / (H*W).
//
// Blocks and threads lie over an image as global_pool.cuh says. Forward: a thread sums its pixels in fp32,
// several loads in flight, the rows meet in shared memory (4 * 256 * V bytes, 8 KiB at most) and a thread
// adds one channel over the rows in order. Backward: it divides once and stores. Needs 16-byte aligned
// tensors (make_plan checks). Deterministic. Mirrors cpu_reference/global_avg_pool_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/pool2d/global_pool.cuh"

namespace kiln {
namespace {

template <class T, int V>
__global__ __launch_bounds__(kGlobalPoolThreads, 4) void global_avg_pool_fwd_vectorized_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,C]
    const __grid_constant__ GlobalPoolLayout l) {
  alignas(16) __shared__ float partial[kGlobalPoolThreads * V];  // [rows][columns * V]
  const GlobalPoolOwner o = global_pool_owner<V>(l);
  float sum[V] = {};
  if (o.inside) {
    take_all_pixels<T, V>(x, l, o, [&](const Vec<T, V>& v, unsigned, bool counts) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += counts ? v[j] : 0.0f;
    });
  }
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
__global__ __launch_bounds__(kGlobalPoolThreads) void global_avg_pool_bwd_vectorized_kernel(
    const T* __restrict__ dy,  // [N,C]
    T* __restrict__ dx,        // [N,H,W,C]
    const __grid_constant__ GlobalPoolLayout l) {
  const GlobalPoolOwner o = global_pool_owner<V>(l);
  if (!o.inside) return;
  auto g = Vec<T, V>::load(dy + o.image * l.channels + o.channel);
#pragma unroll
  for (int j = 0; j < V; ++j) g.set(j, g[j] / static_cast<float>(l.pixels));
  T* first = dx + o.image * l.pixels * l.channels + o.channel;
  for (unsigned pixel = o.row; pixel < l.pixels; pixel += l.rows) {
    g.store(first + static_cast<size_t>(pixel) * l.channels);
  }
}

Support supports(const GlobalAvgPoolProblem&, const Device&) { return Support::yes(); }

template <class T, int V>
Plan<GlobalAvgPoolFwd::Args> plan_fwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolFwd::Args>(
      0, [l = make_global_pool_layout(p, V)](const auto& a, void*, Stream stream) {
        global_avg_pool_fwd_vectorized_kernel<T, V><<<l.blocks, l.threads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), l);
        check_launch("global_avg_pool_fwd_vectorized_kernel");
      });
}

template <class T, int V>
Plan<GlobalAvgPoolBwd::Args> plan_bwd(const GlobalAvgPoolProblem& p) {
  return make_plan<GlobalAvgPoolBwd::Args>(
      0, [l = make_global_pool_layout(p, V)](const auto& a, void*, Stream stream) {
        global_avg_pool_bwd_vectorized_kernel<T, V><<<l.blocks, l.threads, 0, cuda_stream(stream)>>>(
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
