// batchnorm fwd_train: mean[c], rstd[c] over the M rows, running statistics, then
// y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] + beta[c] + residual[m,c]) and act's mask.
//
// Three launches. (1) partial: a thread (batchnorm_tile.cuh says which part it owns) takes kRows rows at a
// time, sums squares about their own mean in registers and merges (count, mean, M2) by Chan's formula; the
// threads of a channel merge in a tree through shared memory, 2 * V * 1 KiB + 1 KiB. (2) merge: kMergeRows
// threads a channel merge the chunks in a fixed order and write the statistics. (3)
// launch_batchnorm_normalise, which walks backwards so that it starts with what is still in L2. All moments
// are of x - x[0,c], so that a mean far larger than the deviation costs no digits. Workspace: mean and M2,
// [chunks,2,C] fp32. Needs 16-byte aligned tensors. Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/batchnorm/batchnorm_moments.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kRows = 8;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kMergeLanes = 8;  // channels of a merge block: a 32-byte sector
constexpr int kMergeRows = kTileThreads / kMergeLanes;

template <class T, int V, bool kFull>
__device__ __forceinline__ void add_rows(Moments<V>& moments, const T* __restrict__ x, ptrdiff_t step,
                                         int left, const float (&pivot)[V]) {
  Vec<T, V> rows[kRows];
  load_rows<T, V, kRows, kFull>(x, step, left, rows);
  moments.template add_rows<kRows, kFull>(rows, left, pivot);
}

// Merges the moments of all threads of a lane into the one with row 0.
template <int V>
__device__ __forceinline__ void merge_block(Moments<V>& moments, const BatchnormTile& tile, int row) {
  __shared__ float s_count[kTileThreads], s_mean[V][kTileThreads], s_m2[V][kTileThreads];
  const int t = static_cast<int>(threadIdx.x);
  // Half of the smallest power of two that is at least block_rows; 0 for one row.
  const int first_half = (1 << (31 - __clz(2 * tile.block_rows - 1))) >> 1;
  for (int half = first_half; half > 0; half >>= 1) {
    if (row >= half && row < 2 * half) {
      s_count[t] = moments.count;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        s_mean[v][t] = moments.mean[v];
        s_m2[v][t] = moments.m2[v];
      }
    }
    __syncthreads();
    const int other = t + half * tile.lanes;
    if (row < half && row + half < tile.block_rows && s_count[other] > 0.0f) {
      float fraction, weight;
      moments.grow(s_count[other], fraction, weight);
#pragma unroll
      for (int v = 0; v < V; ++v) moments.merge(v, fraction, weight, s_mean[v][other], s_m2[v][other]);
    }
    // The next round's writers (rows half/2 .. half) write what nobody read in this one.
  }
}

template <class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_fwd_train_two_pass_partial_kernel(
    const T* __restrict__ x,      // [M,C]
    float* __restrict__ partial,  // [chunks,2,C]: mean of x - pivot, M2
    const __grid_constant__ BatchnormTile tile) {
  const BatchnormSlice s = batchnorm_slice<V>(tile, blockIdx.x);
  Moments<V> moments;
  moments.clear();
  if (s.count > 0) {
    float pivot[V];
    const auto first = Vec<T, V>::load(x + s.channel);
#pragma unroll
    for (int v = 0; v < V; ++v) pivot[v] = first[v];
    const T* at = x + s.first;
    int left = s.count;
    for (; left >= kRows; left -= kRows, at += kRows * s.step) {
      add_rows<T, V, true>(moments, at, static_cast<ptrdiff_t>(s.step), left, pivot);
    }
    if (left > 0) add_rows<T, V, false>(moments, at, static_cast<ptrdiff_t>(s.step), left, pivot);
  }
  merge_block(moments, tile, s.row);
  if (s.row == 0 && s.count > 0) {
    float* out = partial + static_cast<size_t>(s.chunk) * 2 * tile.channels + s.channel;
    store_channels(moments.mean, out);
    store_channels(moments.m2, out + tile.channels);
  }
}

template <class T>
__global__ __launch_bounds__(kTileThreads) void batchnorm_fwd_train_two_pass_merge_kernel(
    const T* __restrict__ x,            // [M,C], of which the first row is the pivot
    const float* __restrict__ partial,  // [chunks,2,C]
    float* __restrict__ running_mean,   // [C]
    float* __restrict__ running_var,    // [C]
    float* __restrict__ saved_mean,     // [C]
    float* __restrict__ saved_rstd,     // [C]
    const __grid_constant__ BatchnormTile tile, float eps, float momentum, float unbiased) {
  __shared__ float s_count[kMergeRows][kMergeLanes], s_mean[kMergeRows][kMergeLanes],
      s_m2[kMergeRows][kMergeLanes];
  const int lane = threadIdx.x % kMergeLanes, row = threadIdx.x / kMergeLanes;
  const long long c = static_cast<long long>(blockIdx.x) * kMergeLanes + lane;
  const bool owns = c < tile.channels;
  Moments<1> moments;
  moments.clear();
#pragma unroll 4
  for (int chunk = row; chunk < tile.chunks; chunk += kMergeRows) {
    const float* from = partial + static_cast<size_t>(chunk) * 2 * tile.channels + (owns ? c : 0);
    float fraction, weight;
    moments.grow(static_cast<float>(tile.chunk_begin(chunk + 1) - tile.chunk_begin(chunk)), fraction, weight);
    moments.merge(0, fraction, weight, from[0], from[tile.channels]);
  }
  s_count[row][lane] = moments.count;
  s_mean[row][lane] = moments.mean[0];
  s_m2[row][lane] = moments.m2[0];
  for (int half = kMergeRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half && s_count[row + half][lane] > 0.0f) {
      float fraction, weight;
      moments.grow(s_count[row + half][lane], fraction, weight);
      moments.merge(0, fraction, weight, s_mean[row + half][lane], s_m2[row + half][lane]);
      s_count[row][lane] = moments.count;
      s_mean[row][lane] = moments.mean[0];
      s_m2[row][lane] = moments.m2[0];
    }
  }
  if (row == 0 && owns) {
    const float mean = to_float(x[c]) + moments.mean[0];
    const float var = moments.m2[0] / static_cast<float>(tile.rows);
    saved_mean[c] = mean;
    saved_rstd[c] = batchnorm_rstd(var, eps);
    running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * mean;
    running_var[c] = (1.0f - momentum) * running_var[c] + momentum * (var * unbiased);
  }
}

Support supports(const BatchnormProblem& p, const Device&) { return batchnorm_normalise_supports(p); }

template <class T, int V>
Plan<BatchnormFwdTrain::Args> plan(const BatchnormProblem& p, const Device& device) {
  const BatchnormTile tile =
      make_batchnorm_tile<V>(p, kBlocksPerMultiprocessor * std::max(1, device.multiprocessors), kRows);
  const size_t bytes = 2 * sizeof(float) * static_cast<size_t>(tile.chunks) * tile.channels;
  using Args = BatchnormFwdTrain::Args;
  return make_plan<Args>(bytes, [p, device, tile](const Args& a, void* workspace, Stream stream) {
    const T* x = static_cast<const T*>(a.x);
    float* partial = static_cast<float*>(workspace);
    batchnorm_fwd_train_two_pass_partial_kernel<T, V>
        <<<tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(x, partial, tile);
    check_launch("batchnorm_fwd_train_two_pass_partial_kernel");
    batchnorm_fwd_train_two_pass_merge_kernel<T>
        <<<grid_for(p.c, kMergeLanes), kTileThreads, 0, cuda_stream(stream)>>>(
            x, partial, static_cast<float*>(a.running_mean), static_cast<float*>(a.running_var),
            static_cast<float*>(a.saved_mean), static_cast<float*>(a.saved_rstd), tile, p.eps, p.momentum,
            static_cast<float>(batchnorm_unbiased(p.per_channel())));
    check_launch("batchnorm_fwd_train_two_pass_merge_kernel");
    launch_batchnorm_normalise(p, device,
                               {.x = x,
                                .gamma = a.gamma,
                                .beta = a.beta,
                                .mean = a.saved_mean,
                                .spread = a.saved_rstd,
                                .residual = a.residual,
                                .y = a.y,
                                .mask = a.mask,
                                .arg = a.arg},
                               stream);
  });
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_two_pass = {
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
