// Launches that start early (programmatic dependent launch, compute capability 9.0, CUDA programming guide):
// once all blocks of the launch before have called let_next_start, blocks of the next one may take places
// that are free, set themselves up and wait for that launch's end. Safe whatever the launch before is, as
// long as every block waits before it reads or writes what another launch may touch.
#pragma once

#include "kernels/common/launch.h"

namespace kiln {

// What lies behind it has no effect on when a launch that waits may read this one's results: at its end.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Returns when the launch before has ended and its results can be seen. Loads must not be moved ahead of it
// by the compiler: let them be asm volatile, or their pointers not __restrict__.
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// Whether the code that this device runs has the wait: made from older PTX it has none, and must not start
// early.
template <class... P>
bool waits_for_last(void (*kernel)(P...), const char* name) {
  cudaFuncAttributes attributes = {};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  return attributes.ptxVersion >= 90;
}

}  // namespace kiln
