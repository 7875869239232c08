// Launches that <<<>>> has no words for: clusters, cooperative grids, early starts. CUDA sources only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/common/check.h"
#include "kernels/common/device.h"

namespace kiln {

struct LaunchShape {
  dim3 grid = {};
  int threads = 0;           // of a block
  size_t shared_bytes = 0;   // dynamic shared memory of a block
  int cluster = 1;           // neighbouring blocks along x that run together (compute capability 9.0)
  bool cooperative = false;  // all blocks at once, or an error
  bool early = false;        // before the launch before has ended: see early_launch.cuh for who may
};

// Enqueues kernel(args...). Throws Error(kFailure) naming `name`, the kernel's.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const char* name, const LaunchShape& shape, Stream stream,
                   const Args&... args) {
  cudaLaunchAttribute attributes[3] = {};
  cudaLaunchConfig_t launch = {};
  launch.gridDim = shape.grid;
  launch.blockDim = dim3(static_cast<unsigned>(shape.threads));
  launch.dynamicSmemBytes = shape.shared_bytes;
  launch.stream = cuda_stream(stream);
  launch.attrs = attributes;
  if (shape.early) {
    cudaLaunchAttribute& a = attributes[launch.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& a = attributes[launch.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& a = attributes[launch.numAttrs++];
    a.id = cudaLaunchAttributeCooperative;
    a.val.cooperative = 1;
  }
  check_cuda(cudaLaunchKernelEx(&launch, kernel, static_cast<Params>(args)...), name);
}

}  // namespace kiln
