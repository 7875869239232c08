// depthwise_conv2d wgrad's second launch: dw and dbias as the sums of the parts that the first launch's
// blocks wrote, in a fixed order.
//
// A block owns 32 sums, a warp of it a contiguous range of parts, a lane one sum. Shared memory 4 KiB.
// Deterministic. Launched early, it starts while the first launch ends and waits for it in the kernel.
#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.h"

#include "kernels/common/check.h"
#include "kernels/common/counters.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"

namespace kiln {
namespace {

constexpr int kSumWarps = 32;
constexpr int kSumLoads = 9;  // of a lane that are under way together: 288 parts are one wait for memory

__global__ __launch_bounds__(32 * kSumWarps) void depthwise_conv2d_wgrad_sum_kernel(
    const float* __restrict__ partial,  // [parts,elements]
    const __grid_constant__ DepthwiseWgradSum g,
    float* __restrict__ dw,       // [filter]: the first elements
    float* __restrict__ dbias) {  // [elements - filter], null where that is 0
  __shared__ float sums[kSumWarps][32];
  wait_for_last();  // the parts are written; nothing to wait for otherwise
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  const int end = i < g.elements ? g.parts * (warp + 1) / kSumWarps : 0;
  float sum = 0;
#pragma unroll 1
  for (int j = g.parts * warp / kSumWarps; j < end; j += kSumLoads) {
    float part[kSumLoads];
#pragma unroll
    for (int k = 0; k < kSumLoads; ++k) {
      part[k] = j + k < end ? partial[static_cast<size_t>(j + k) * g.elements + i] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kSumLoads; ++k) sum += part[k];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || i >= g.elements) return;
#pragma unroll
  for (int j = 1; j < kSumWarps; ++j) sum += sums[j][lane];
  if (i < g.filter) {
    dw[i] = sum;
  } else {
    dbias[i - g.filter] = sum;
  }
}

}  // namespace

void launch_depthwise_wgrad_sum(const DepthwiseWgradSum& g, const float* partial, float* dw, float* dbias,
                                Stream stream) {
  depthwise_conv2d_wgrad_sum_kernel<<<ceil_div(g.elements, 32), 32 * kSumWarps, 0, cuda_stream(stream)>>>(
      partial, g, dw, dbias);
  check_launch("depthwise_conv2d_wgrad_sum_kernel");
}

std::shared_ptr<const DeviceBuffer> depthwise_wgrad_counters(const DepthwiseWgradSum& g) {
  return depthwise_wgrad_last_block_sums(g) ? zeroed_counters(g.slices) : nullptr;
}

void launch_depthwise_wgrad_sum_early(const DepthwiseWgradSum& g, const float* partial, float* dw,
                                      float* dbias, Stream stream) {
  const auto kernel = depthwise_conv2d_wgrad_sum_kernel;
  static const bool early = waits_for_last(kernel, "depthwise_conv2d_wgrad_sum_kernel");
  launch_kernel(
      kernel, "depthwise_conv2d_wgrad_sum_kernel",
      {.grid = static_cast<unsigned>(ceil_div(g.elements, 32)), .threads = 32 * kSumWarps, .early = early},
      stream, partial, g, dw, dbias);
}

}  // namespace kiln
