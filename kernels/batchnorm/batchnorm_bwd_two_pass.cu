// batchnorm bwd: with g[m,c] = dy[m,c] where act passed, dbeta[c] = sum_m g, dgamma[c] = rstd[c] * sum_m g *
// d, d = x[m,c] - mean[c], and dx[m,c] = gamma[c] * rstd[c] * (g - dbeta[c]/M - d * rstd[c] * dgamma[c]/M).
//
// Three launches. (1) partial: a thread (batchnorm_tile.cuh says which part it owns) sums g and g * d of its
// rows, kRows rows in flight; the threads of a channel add up in a tree through shared memory, 2 * V * 1 KiB.
// (2) merge: kMergeRows threads a channel add the chunks in a fixed order. (3) dx, walking backwards so that
// it starts with what is still in L2. Workspace: the sums, [chunks,2,C] fp32. Needs 16-byte aligned tensors.
// Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kSumRows = 4;       // rows in flight, of x and of dy
constexpr int kGradientRows = 2;  // the same in the last stage, which holds more a channel
constexpr int kSumBlocks = 2;     // blocks a multiprocessor: all are resident
constexpr int kGradientBlocks = 8;
constexpr int kMergeLanes = 8;  // channels of a merge block: a 32-byte sector
constexpr int kMergeRows = kTileThreads / kMergeLanes;

// What forward knew of a thread's channels.
template <int V>
struct Channels {
  float mean[V], scale[V], beta[V];

  __device__ __forceinline__ void load(const float* gamma, const float* beta_c, const float* saved_mean,
                                       const float* saved_rstd, int channel) {
    float rstd[V];
    load_channels(saved_mean + channel, mean);
    load_channels(gamma + channel, scale);
    load_channels(beta_c + channel, beta);
    load_channels(saved_rstd + channel, rstd);
#pragma unroll
    for (int v = 0; v < V; ++v) scale[v] = batchnorm_scale(scale[v], rstd[v]);
  }
  // dy where the activation passed.
  __device__ __forceinline__ float gradient(int v, float dy, float centred, bool relu) const {
    return batchnorm_passes(batchnorm_pre(centred, scale[v], beta[v]), relu) ? dy : 0.0f;
  }
};

template <class T, int V, bool kFull>
__device__ __forceinline__ void sum_rows(const T* __restrict__ dy, const T* __restrict__ x, ptrdiff_t step,
                                         int left, const Channels<V>& ch, bool relu, float (&sum_g)[V],
                                         float (&sum_gd)[V]) {
  Vec<T, V> dy_rows[kSumRows], x_rows[kSumRows];
  load_rows<T, V, kSumRows, kFull>(dy, step, left, dy_rows);
  load_rows<T, V, kSumRows, kFull>(x, step, left, x_rows);
#pragma unroll
  for (int u = 0; u < kSumRows; ++u) {
    if (kFull || u < left) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float d = batchnorm_centre(x_rows[u][v], ch.mean[v]);
        const float g = ch.gradient(v, dy_rows[u][v], d, relu);
        sum_g[v] += g;
        sum_gd[v] += g * d;
      }
    }
  }
}

// Adds up both sums of all threads of a lane into the one with row 0.
template <int V>
__device__ __forceinline__ void add_block(float (&sum_g)[V], float (&sum_gd)[V], const BatchnormTile& tile,
                                          int row) {
  __shared__ float s_g[V][kTileThreads], s_gd[V][kTileThreads];
  const int t = static_cast<int>(threadIdx.x);
  // Half of the smallest power of two that is at least block_rows; 0 for one row.
  const int first_half = (1 << (31 - __clz(2 * tile.block_rows - 1))) >> 1;
  for (int half = first_half; half > 0; half >>= 1) {
    if (row >= half && row < 2 * half) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        s_g[v][t] = sum_g[v];
        s_gd[v][t] = sum_gd[v];
      }
    }
    __syncthreads();
    const int other = t + half * tile.lanes;
    if (row < half && row + half < tile.block_rows) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum_g[v] += s_g[v][other];
        sum_gd[v] += s_gd[v][other];
      }
    }
    // The next round's writers (rows half/2 .. half) write what nobody read in this one.
  }
}

template <class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_bwd_two_pass_partial_kernel(
    const T* __restrict__ dy,              // [M,C]
    const T* __restrict__ x,               // [M,C]
    const float* __restrict__ gamma,       // [C]
    const float* __restrict__ beta,        // [C]
    const float* __restrict__ saved_mean,  // [C]
    const float* __restrict__ saved_rstd,  // [C]
    float* __restrict__ partial,           // [chunks,2,C]: sum g, sum g * d
    const __grid_constant__ BatchnormTile tile, bool relu) {
  const BatchnormSlice s = batchnorm_slice<V>(tile, blockIdx.x);
  float sum_g[V], sum_gd[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum_g[v] = sum_gd[v] = 0.0f;
  if (s.count > 0) {
    Channels<V> ch;
    ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
    const ptrdiff_t step = static_cast<ptrdiff_t>(s.step);
    size_t at = s.first;
    int left = s.count;
    for (; left >= kSumRows; left -= kSumRows, at += kSumRows * s.step) {
      sum_rows<T, V, true>(dy + at, x + at, step, left, ch, relu, sum_g, sum_gd);
    }
    if (left > 0) sum_rows<T, V, false>(dy + at, x + at, step, left, ch, relu, sum_g, sum_gd);
  }
  add_block(sum_g, sum_gd, tile, s.row);
  if (s.row == 0 && s.count > 0) {
    float* out = partial + static_cast<size_t>(s.chunk) * 2 * tile.channels + s.channel;
    store_channels(sum_g, out);
    store_channels(sum_gd, out + tile.channels);
  }
}

__global__ __launch_bounds__(kTileThreads) void batchnorm_bwd_two_pass_merge_kernel(
    const float* __restrict__ partial,     // [chunks,2,C]
    const float* __restrict__ saved_rstd,  // [C]
    float* __restrict__ dgamma,            // [C]
    float* __restrict__ dbeta,             // [C]
    int chunks, int channels) {
  __shared__ float s_g[kMergeRows][kMergeLanes], s_gd[kMergeRows][kMergeLanes];
  const int lane = threadIdx.x % kMergeLanes, row = threadIdx.x / kMergeLanes;
  const long long c = static_cast<long long>(blockIdx.x) * kMergeLanes + lane;
  const bool owns = c < channels;
  float g = 0.0f, gd = 0.0f;
#pragma unroll 4
  for (int chunk = row; chunk < chunks; chunk += kMergeRows) {
    const float* from = partial + static_cast<size_t>(chunk) * 2 * channels + (owns ? c : 0);
    g += from[0];
    gd += from[channels];
  }
  s_g[row][lane] = g;
  s_gd[row][lane] = gd;
  for (int half = kMergeRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) {
      s_g[row][lane] = g += s_g[row + half][lane];
      s_gd[row][lane] = gd += s_gd[row + half][lane];
    }
  }
  if (row == 0 && owns) {
    dbeta[c] = g;
    dgamma[c] = gd * saved_rstd[c];
  }
}

template <class T, int V, bool kFull>
__device__ __forceinline__ void gradient_rows(const T* __restrict__ dy, const T* __restrict__ x,
                                              T* __restrict__ dx, ptrdiff_t step, int left,
                                              const Channels<V>& ch, const float (&mean_g)[V],
                                              const float (&slope)[V], bool relu) {
  Vec<T, V> dy_rows[kGradientRows], x_rows[kGradientRows];
  load_rows<T, V, kGradientRows, kFull>(dy, step, left, dy_rows);
  load_rows<T, V, kGradientRows, kFull>(x, step, left, x_rows);
#pragma unroll
  for (int u = 0; u < kGradientRows; ++u) {
    if (kFull || u < left) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float d = batchnorm_centre(x_rows[u][v], ch.mean[v]);
        const float g = ch.gradient(v, dy_rows[u][v], d, relu);
        dy_rows[u].set(v, ch.scale[v] * (g - mean_g[v] - d * slope[v]));
      }
      dy_rows[u].store(dx + u * step);
    }
  }
}

template <class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_bwd_two_pass_gradient_kernel(
    const T* __restrict__ dy,              // [M,C]
    const T* __restrict__ x,               // [M,C]
    const float* __restrict__ gamma,       // [C]
    const float* __restrict__ beta,        // [C]
    const float* __restrict__ saved_mean,  // [C]
    const float* __restrict__ saved_rstd,  // [C]
    const float* __restrict__ dgamma,      // [C]
    const float* __restrict__ dbeta,       // [C]
    T* __restrict__ dx,                    // [M,C]
    const __grid_constant__ BatchnormTile tile, bool relu) {
  const BatchnormSlice s = batchnorm_slice<V>(tile, gridDim.x - 1 - blockIdx.x);
  if (s.count == 0) return;
  Channels<V> ch;
  ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
  float mean_g[V], slope[V], rstd[V];
  load_channels(dbeta + s.channel, mean_g);
  load_channels(dgamma + s.channel, slope);
  load_channels(saved_rstd + s.channel, rstd);
  const float inverse = 1.0f / static_cast<float>(tile.rows);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    mean_g[v] *= inverse;
    slope[v] *= rstd[v] * inverse;
  }
  size_t at = s.first + static_cast<size_t>(s.count - 1) * s.step;
  const ptrdiff_t step = -static_cast<ptrdiff_t>(s.step);
  int left = s.count;
  for (; left >= kGradientRows; left -= kGradientRows) {
    gradient_rows<T, V, true>(dy + at, x + at, dx + at, step, left, ch, mean_g, slope, relu);
    at -= kGradientRows * s.step;
  }
  if (left > 0) gradient_rows<T, V, false>(dy + at, x + at, dx + at, step, left, ch, mean_g, slope, relu);
}

Support supports(const BatchnormProblem&, const Device&) { return Support::yes(); }

template <class T, int V>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device) {
  const int multiprocessors = std::max(1, device.multiprocessors);
  const BatchnormTile sums = make_batchnorm_tile<V>(p, kSumBlocks * multiprocessors, kSumRows);
  const BatchnormTile tile = make_batchnorm_tile<V>(p, kGradientBlocks * multiprocessors, kGradientRows);
  const size_t bytes = 2 * sizeof(float) * static_cast<size_t>(sums.chunks) * sums.channels;
  using Args = BatchnormBwd::Args;
  return make_plan<Args>(bytes, [p, sums, tile](const Args& a, void* workspace, Stream stream) {
    const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
    const T *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
    float *dgamma = static_cast<float*>(a.dgamma), *dbeta = static_cast<float*>(a.dbeta);
    float* partial = static_cast<float*>(workspace);
    batchnorm_bwd_two_pass_partial_kernel<T, V><<<sums.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
        dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
        per_channel(a.saved_rstd), partial, sums, p.relu);
    check_launch("batchnorm_bwd_two_pass_partial_kernel");
    batchnorm_bwd_two_pass_merge_kernel<<<grid_for(p.c, kMergeLanes), kTileThreads, 0, cuda_stream(stream)>>>(
        partial, per_channel(a.saved_rstd), dgamma, dbeta, sums.chunks, sums.channels);
    check_launch("batchnorm_bwd_two_pass_merge_kernel");
    batchnorm_bwd_two_pass_gradient_kernel<T, V><<<tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
        dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
        per_channel(a.saved_rstd), dgamma, dbeta, static_cast<T*>(a.dx), tile, p.relu);
    check_launch("batchnorm_bwd_two_pass_gradient_kernel");
  });
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_two_pass = {
    .name = "two_pass",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      if (p.dtype == DType::kBF16) {
        return p.c % kVec16<bf16> == 0 ? plan<bf16, kVec16<bf16>>(p, device) : plan<bf16, 1>(p, device);
      }
      return p.c % kVec16<float> == 0 ? plan<float, kVec16<float>>(p, device) : plan<float, 1>(p, device);
    }};

}  // namespace kiln
