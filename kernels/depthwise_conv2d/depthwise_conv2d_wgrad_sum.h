// How depthwise_conv2d's wgrad adds the parts that its blocks leave in the workspace: few of a slice of
// channels by the last of the slice's blocks (depthwise_conv2d_wgrad_sum.cuh), many by a second launch.
#pragma once

#include <algorithm>
#include <memory>

#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grid.h"

namespace kiln {

struct DepthwiseWgradSum {
  int parts;     // at least 1
  int elements;  // of a part: R*R*C, and C more for dbias
  int filter;    // R*R*C
  // Of the blocks: slices of channels, elements of a slice of a part (a multiple of 4), threads.
  int slices = 0, slice_elements = 0, threads = 0;
};

// partial: [parts, elements]. dw: [filter]. dbias: [elements - filter], null where that is 0. The order of
// summation depends on `parts` alone.
void launch_depthwise_wgrad_sum(const DepthwiseWgradSum&, const float* partial, float* dw, float* dbias,
                                Stream stream);
// The same on compute capability 9.0, behind a kernel that allows it to start (griddepcontrol): it is on its
// way before that one ends, for which it then waits.
void launch_depthwise_wgrad_sum_early(const DepthwiseWgradSum&, const float* partial, float* dw, float* dbias,
                                      Stream stream);

constexpr int kDepthwiseWgradLoads = 8;  // of a thread of the last block, that are under way together

// Whether the last block of a slice is done with its parts before a second launch would be.
constexpr bool depthwise_wgrad_last_block_sums(const DepthwiseWgradSum& g) {
  constexpr int kMostWaits = 4;  // for memory
  const int items = g.slice_elements / 4, ways = std::min(std::max(g.threads / items, 1), g.parts);
  const int turns = ways > 1 ? 1 : ceil_div(items, g.threads);
  return turns * ceil_div(ceil_div(g.parts, ways), kDepthwiseWgradLoads) <= kMostWaits;
}

// What the last blocks' sums take longer than a second launch's, in cycles: fitted to what an H100 measures.
constexpr double depthwise_wgrad_last_block_cycles(const DepthwiseWgradSum& g) {
  return depthwise_wgrad_last_block_sums(g) ? 0.27 * g.parts * g.slice_elements : 0;
}

// A plan's counter of arrived blocks for each slice (counters.h), where depthwise_wgrad_last_block_sums, else
// null: then the second launch is needed.
std::shared_ptr<const DeviceBuffer> depthwise_wgrad_counters(const DepthwiseWgradSum&);

}  // namespace kiln
