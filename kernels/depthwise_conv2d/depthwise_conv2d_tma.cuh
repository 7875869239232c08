// Host side of what the tma_tile and the tma_rows kernels of depthwise_conv2d share: their shared memory and
// the maps of their tensors.
#pragma once

#include "kernels/common/check.h"
#include "kernels/common/tensor_map.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma.h"

namespace kiln {

// Lets a kernel have all of a multiprocessor's shared memory, and take it from the L1 cache.
template <class Kernel>
void allow_shared_memory(Kernel* kernel) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTmaMostSmem),
             "depthwise_conv2d: shared memory");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "depthwise_conv2d: carve-out");
}

// The map of a tensor [n][h][w][c] of T whose loads are boxes [images][rows][columns][channels].
template <class T>
CUtensorMap make_box_map(const void* base, const int (&tensor)[4], const int (&box)[4]) {
  DenseMap map = {.base = base, .element_bytes = static_cast<int>(sizeof(T)), .sizes = {}, .box = {}};
  for (int i = 0; i < 4; ++i) {
    map.sizes[i] = static_cast<uint64_t>(tensor[3 - i]);
    map.box[i] = static_cast<uint32_t>(box[3 - i]);
  }
  return make_dense_map(map);
}

}  // namespace kiln
