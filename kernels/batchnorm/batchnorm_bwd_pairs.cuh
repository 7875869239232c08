// The two sums of batchnorm's backward, sum g and sum g * d, where chunks of rows meet.
#pragma once

#include <cuda_runtime.h>

namespace kiln {
namespace {

// Of V channels.
template <int V>
struct Sums {
  float g[V], gd[V];
};

// Adds a chunk's sums of four channels (BatchnormMeeting::each_chunk).
__device__ __forceinline__ void add_chunk(Sums<4>& sums, const float4& g, const float4& gd) {
  sums.g[0] += g.x;
  sums.g[1] += g.y;
  sums.g[2] += g.z;
  sums.g[3] += g.w;
  sums.gd[0] += gd.x;
  sums.gd[1] += gd.y;
  sums.gd[2] += gd.z;
  sums.gd[3] += gd.w;
}

}  // namespace
}  // namespace kiln
