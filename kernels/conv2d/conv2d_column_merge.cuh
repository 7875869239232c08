// Merges the column sums of conv2d_column_sums.cuh:
//
//   mean[k] = sum_b S_b[k] / M,  var[k] = sum_b Q_b[k] / M - mean[k]^2,  b: blocks, M: pixels
//
// in double. A block has 8 columns, thread t column t % 8 and every 32nd slot; a thread's loads are all in
// flight at once. Shared memory: 1 KiB. Launched early (early_launch.cuh): until the convolution has ended
// a block runs through its instructions once without loads, so that they are fetched by then. Deterministic:
// slots in their order within a thread, a fixed tree across threads.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/conv2d/conv2d_column_sums.cuh"
#include "kernels/conv2d/conv2d_wgmma_cost.cuh"

namespace kiln {

constexpr int kMergeColumns = 8, kMergeThreads = 256, kMergeLoads = 5;

// A thread's part of the sums of its column, whose slots are `pitch` apart from `from` on.
__device__ __forceinline__ double2 merge_slots(const double2* from, int slots, int pitch, bool load) {
  double2 sum = make_double2(0.0, 0.0);
  for (int first = threadIdx.x / kMergeColumns; first < slots; first += 32 * kMergeLoads) {
    double2 part[kMergeLoads];
#pragma unroll
    for (int i = 0; i < kMergeLoads; ++i) {
      const int slot = first + i * 32;
      part[i] = make_double2(0.0, 0.0);
      if (load && slot < slots) {
        asm volatile("ld.global.cg.v2.f64 {%0, %1}, [%2];\n"
                     : "=d"(part[i].x), "=d"(part[i].y)
                     : "l"(from + static_cast<size_t>(slot) * pitch)
                     : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < kMergeLoads; ++i) sum.x += part[i].x, sum.y += part[i].y;
  }
  return sum;
}

// Adds up lanes that differ in bits 8 and 16.
__device__ __forceinline__ double2 merge_lanes(double2 sum) {
#pragma unroll
  for (int offset = kMergeColumns; offset < 32; offset *= 2) {
    sum.x += __shfl_xor_sync(0xffffffffu, sum.x, offset);
    sum.y += __shfl_xor_sync(0xffffffffu, sum.y, offset);
  }
  return sum;
}

// kTileColumns: of the tiles that were summed.
template <int kTileColumns>
__global__ __launch_bounds__(kMergeThreads) void conv2d_column_merge_kernel(
    ColumnPartials partials,      // [column tiles][slots][kTileColumns]
    float* __restrict__ mean,     // [K]
    float* __restrict__ var,      // [K]
    int columns, double share) {  // K and 1 / M
  __shared__ double2 shared[kMergeThreads / 32][kMergeColumns];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = blockIdx.x * kMergeColumns + threadIdx.x % kMergeColumns;
  const double2* from = partials.sums +
                        static_cast<size_t>(k / kTileColumns) * partials.slots * kTileColumns +
                        k % kTileColumns;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    const bool real = turn == 1;
    if (real) wait_for_last();
    double2 sum = merge_lanes(merge_slots(from, partials.slots, kTileColumns, real && k < columns));
    if (lane < kMergeColumns) shared[warp][lane] = sum;
    __syncthreads();  // the warps' sums are written
    if (warp == 0) {
      const double2 one = shared[lane / 8][lane % 8], other = shared[lane / 8 + 4][lane % 8];
      sum = merge_lanes(make_double2(one.x + other.x, one.y + other.y));
      const double middle = sum.x * share;
      if (real && lane < kMergeColumns && k < columns) {
        mean[k] = static_cast<float>(middle);
        var[k] = static_cast<float>(fmax(sum.y * share - middle * middle, 0.0));
      }
    }
    __syncthreads();  // read by warp 0: the next turn may overwrite them
  }
}

// The column sums of a launch of `blocks` blocks with `column_tiles` tiles of Config's columns.
template <class Config>
ColumnPartials column_partials(const WgmmaBuffers& buffers, int blocks, int column_tiles) {
  static_assert(Config::kBN <= kWgmmaSumColumns, "the workspace has room for a block's columns");
  return {static_cast<double2*>(buffers.workspace), blocks / column_tiles};
}

// `product` writes the partials; behind it mean and variance are made from them. Its blocks must call
// let_next_start().
template <class Config>
Bound with_column_merge(const Bound& product, const ColumnPartials& partials, const WgmmaGather& gather,
                        const WgmmaBuffers& buffers) {
  return Bound([=, columns = gather.shape.columns, share = 1.0 / gather.shape.rows](Stream stream) {
    product.launch(stream);
    launch_kernel(conv2d_column_merge_kernel<Config::kBN>, "conv2d_column_merge_kernel",
                  {.grid = static_cast<unsigned>(ceil_div(columns, kMergeColumns)),
                   .threads = kMergeThreads,
                   .early = true},
                  stream, partials, static_cast<float*>(buffers.mean), static_cast<float*>(buffers.var),
                  columns, share);
  });
}

}  // namespace kiln
