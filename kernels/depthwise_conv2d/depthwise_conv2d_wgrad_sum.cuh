// What ends the wgrad kernels of depthwise_conv2d that are fed by the copy engine: either a second launch is
// let on its way, or the last block of a slice of channels adds the parts of all of them.
#pragma once

#include "kernels/depthwise_conv2d/depthwise_conv2d_wgrad_sum.h"

namespace kiln {
namespace {

// Lets a launch that waits for this kernel's end by itself be on its way.
__device__ __forceinline__ void allow_next_launch() { asm volatile("griddepcontrol.launch_dependents;\n"); }

// A slice of channels of every part.
struct WgradSlice {
  int parts, rows, filter_rows;  // rows of a part: R*R, and one more for dbias
  int c;                         // channels of all slices
  int first, width;              // of the slice: multiples of 4, all of them exist
};

__device__ __forceinline__ void add_to(float4& sum, const float4& v) {
  sum.x += v.x;
  sum.y += v.y;
  sum.z += v.z;
  sum.w += v.w;
}

// All `threads` threads of the slice's g.parts blocks, once their part is written. Each block counts itself
// in `arrived`, which is 0 before a launch and, wrapping, after it; the last, which sees all parts, adds them
// in an order that depends on the shapes alone. A thread owns four channels of a row, or, where there are
// threads enough, a contiguous range of their parts. shared: [threads], free for all threads.
__device__ __forceinline__ void add_parts_in_last_block(const float* partial,  // [parts,rows,C]
                                                        const WgradSlice& g,
                                                        unsigned* arrived,  // [1], of the slice
                                                        float* dw,          // [filter_rows,C]
                                                        float* dbias,       // [C] or null
                                                        float4* shared, int thread, int threads) {
  __threadfence();  // the part is seen by whoever sees the count
  __syncthreads();
  const unsigned most = static_cast<unsigned>(g.parts) - 1;
  if (!__syncthreads_or(thread == 0 && atomicInc(arrived, most) == most)) return;
  __threadfence();
  const int quads = g.width / 4, items = g.rows * quads, ways = min(max(threads / items, 1), g.parts);
  const int way = ways == 1 ? 0 : thread / items;
#pragma unroll 1
  for (int o = thread - way * items; way < ways && o < items; o += ways == 1 ? threads : items) {
    const int row = o / quads, channel = g.first + 4 * (o - row * quads);
    const size_t apart = static_cast<size_t>(g.rows) * g.c;
    const float* from = partial + row * g.c + channel;
    const int end = g.parts * (way + 1) / ways;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int i = g.parts * way / ways; i < end; i += kDepthwiseWgradLoads) {
      float4 part[kDepthwiseWgradLoads];
#pragma unroll
      for (int k = 0; k < kDepthwiseWgradLoads; ++k) {  // past the L1 cache: others wrote them
        const float4* at = reinterpret_cast<const float4*>(from + (i + k) * apart);
        part[k] = i + k < end ? __ldcg(at) : float4{0.0f, 0.0f, 0.0f, 0.0f};
      }
#pragma unroll
      for (int k = 0; k < kDepthwiseWgradLoads; ++k) add_to(sum, part[k]);
    }
    if (ways > 1) {
      shared[thread] = sum;
    } else {
      float* to = row < g.filter_rows ? dw + row * g.c : dbias;
      *reinterpret_cast<float4*>(to + channel) = sum;
    }
  }
  if (ways == 1) return;
  __syncthreads();
  if (thread >= items) return;
  float4 sum = shared[thread];
  for (int i = 1; i < ways; ++i) add_to(sum, shared[i * items + thread]);
  const int row = thread / quads, channel = g.first + 4 * (thread - row * quads);
  float* to = row < g.filter_rows ? dw + row * g.c : dbias;
  *reinterpret_cast<float4*>(to + channel) = sum;
}

}  // namespace
}  // namespace kiln
