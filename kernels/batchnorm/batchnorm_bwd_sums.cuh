// The sums of the batchnorm backwards that write them to memory between two walks: adding up a block's
// threads, and the launch that adds the blocks' sums to dgamma and dbeta, both in a fixed order.
#pragma once

#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kMergeLanes = 8;  // channels of a merge block: a 32-byte sector
constexpr int kMergeRows = kTileThreads / kMergeLanes;

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

__global__ __launch_bounds__(kTileThreads) void batchnorm_bwd_merge_kernel(
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

// Enqueues dgamma and dbeta of what the blocks of `sums` left in `partial`.
inline void launch_merge(const float* partial,     // [chunks,2,C]
                         const float* saved_rstd,  // [C]
                         float* dgamma,            // [C]
                         float* dbeta,             // [C]
                         const BatchnormTile& sums, Stream stream) {
  batchnorm_bwd_merge_kernel<<<grid_for(sums.channels, kMergeLanes), kTileThreads, 0, cuda_stream(stream)>>>(
      partial, saved_rstd, dgamma, dbeta, sums.chunks, sums.channels);
  check_launch("batchnorm_bwd_merge_kernel");
}

}  // namespace
}  // namespace kiln
