// What changes from one training step to the next, read by kernels from device memory and never passed as a
// kernel argument, so that one captured CUDA graph serves every step.
#pragma once

#include <cstdint>

namespace kiln {

struct StepState {
  uint64_t seed = 0;          // the run's seed, key of every Philox draw
  uint32_t step = 0;          // steps done before this one
  uint32_t epoch = 0;         // epochs done before this one
  uint32_t batch_offset = 0;  // position of this batch's first image in the epoch's order
  uint32_t finite = 1;        // 0: loss or gradients are not finite, the update is skipped
  float lr = 0.0f;            // learning rate of this step
  float reserved = 0.0f;
};
static_assert(sizeof(StepState) == 32, "copied as one 32-byte block");

}  // namespace kiln
