// global_max_pool fwd: y[n,c] = max_{h,w} x[n,h,w,c], arg its h*W+w;
// global_max_pool bwd: dx[n,h,w,c] = arg[n,c] == h*W+w ? dy[n,c] : 0.
//
// Blocks and threads lie over an image as global_pool.cuh says. Forward: a thread keeps the best of its
// pixels and its position in registers, several loads in flight; the rows meet in shared memory (8 * 256 * V
// bytes, 16 KiB at most) and a thread merges one channel over the rows. Which of two is better depends on
// values and positions alone (a NaN before all else, the last of them; then the larger, the first of equals),
// so that the order of merging does not matter. Backward: a thread reads dy and arg once and stores its
// pixels. Needs 16-byte aligned tensors (make_plan checks). Deterministic. Mirrors
// cpu_reference/global_max_pool_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/pool2d/global_pool.cuh"

namespace kiln {
namespace {

// Whether `v` at position i comes before `best` at position j.
__device__ __forceinline__ bool comes_before(float v, int i, float best, int j) {
  if (v != v) return best == best || i > j;
  return v > best || (v == best && i < j);
}

template <class T, int V>
__global__ __launch_bounds__(kGlobalPoolThreads, 4) void global_max_pool_fwd_vectorized_kernel(
    const T* __restrict__ x,  // [N,H,W,C]
    T* __restrict__ y,        // [N,C]
    int* __restrict__ arg,    // [N,C] or null
    const __grid_constant__ GlobalPoolLayout l) {
  alignas(16) __shared__ float row_best[kGlobalPoolThreads * V];  // [rows][columns * V]
  alignas(16) __shared__ int row_position[kGlobalPoolThreads * V];
  const GlobalPoolOwner o = global_pool_owner<V>(l);
  float best[V];
  int position[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    best[j] = -INFINITY;
    position[j] = static_cast<int>(min(o.row, l.pixels - 1));  // that of an image of minus infinities
  }
  if (o.inside) {
    // Pixels come in ascending order: an equal one is no better, a NaN always is.
    take_all_pixels<T, V>(x, l, o, [&](const Vec<T, V>& v, unsigned pixel, bool) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const bool better = static_cast<int>(v[j] > best[j]) | static_cast<int>(v[j] != v[j]);  // no branch
        best[j] = better ? v[j] : best[j];
        position[j] = better ? static_cast<int>(pixel) : position[j];
      }
    });
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    row_best[threadIdx.x * V + j] = best[j];
    row_position[threadIdx.x * V + j] = position[j];
  }
  __syncthreads();  // every row's best is in place

  const int width = V << l.columns_log2;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int channel = o.chunk_channel + i;
    if (channel >= l.channels) return;
    float value = row_best[i];
    int at = row_position[i];
    for (unsigned row = 1; row < l.rows; ++row) {
      const float v = row_best[row * width + i];
      const int p = row_position[row * width + i];
      if (comes_before(v, p, value, at)) {
        value = v;
        at = p;
      }
    }
    y[o.image * l.channels + channel] = from_float<T>(value);
    if (arg) arg[o.image * l.channels + channel] = at;
  }
}

template <class T, int V>
__global__ __launch_bounds__(kGlobalPoolThreads) void global_max_pool_bwd_vectorized_kernel(
    const T* __restrict__ dy,     // [N,C]
    const int* __restrict__ arg,  // [N,C]
    T* __restrict__ dx,           // [N,H,W,C]
    const __grid_constant__ GlobalPoolLayout l) {
  constexpr int kInts = V < 4 ? V : 4;  // 16 bytes of arg
  const GlobalPoolOwner o = global_pool_owner<V>(l);
  if (!o.inside) return;
  const size_t from = o.image * l.channels + o.channel;
  const auto g = Vec<T, V>::load(dy + from);
  Vec<int, kInts> position[V / kInts];
#pragma unroll
  for (int k = 0; k < V / kInts; ++k) position[k] = Vec<int, kInts>::load(arg + from + k * kInts);
  T* first = dx + o.image * l.pixels * l.channels + o.channel;
  for (unsigned pixel = o.row; pixel < l.pixels; pixel += l.rows) {
    Vec<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      out.v[j] = position[j / kInts].v[j % kInts] == static_cast<int>(pixel) ? g.v[j] : T(0.0f);
    }
    out.store(first + static_cast<size_t>(pixel) * l.channels);
  }
}

template <class T, int V>
Plan<GlobalMaxPoolFwd::Args> plan_fwd(const GlobalMaxPoolProblem& p) {
  return make_plan<GlobalMaxPoolFwd::Args>(
      0, [l = make_global_pool_layout(p, V)](const auto& a, void*, Stream stream) {
        global_max_pool_fwd_vectorized_kernel<T, V><<<l.blocks, l.threads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<T*>(a.y), static_cast<int*>(a.arg), l);
        check_launch("global_max_pool_fwd_vectorized_kernel");
      });
}

template <class T, int V>
Plan<GlobalMaxPoolBwd::Args> plan_bwd(const GlobalMaxPoolProblem& p) {
  return make_plan<GlobalMaxPoolBwd::Args>(
      0, [l = make_global_pool_layout(p, V)](const auto& a, void*, Stream stream) {
        global_max_pool_bwd_vectorized_kernel<T, V><<<l.blocks, l.threads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const int*>(a.arg), static_cast<T*>(a.dx), l);
        check_launch("global_max_pool_bwd_vectorized_kernel");
      });
}

}  // namespace

extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_vectorized = {
    .name = "vectorized",
    .supports = [](const GlobalMaxPoolProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const GlobalMaxPoolProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          if (p.dtype == DType::kBF16) return p.c % 8 == 0 ? plan_fwd<bf16, 8>(p) : plan_fwd<bf16, 1>(p);
          return p.c % 4 == 0 ? plan_fwd<float, 4>(p) : plan_fwd<float, 1>(p);
        }};

extern const Impl<GlobalMaxPoolBwd> global_max_pool_bwd_vectorized = {
    .name = "vectorized",
    .supports = [](const GlobalMaxPoolProblem& p,
                   const Device&) { return Support::require(p.arg, "the backward pass needs arg32"); },
    .plan =
        [](const GlobalMaxPoolProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          if (p.dtype == DType::kBF16) return p.c % 8 == 0 ? plan_bwd<bf16, 8>(p) : plan_bwd<bf16, 1>(p);
          return p.c % 4 == 0 ? plan_bwd<float, 4>(p) : plan_bwd<float, 1>(p);
        }};

}  // namespace kiln
