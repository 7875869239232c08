// step_finish: the end of a step's measurements, on the device: is everything finite, and what was the loss.
//
//   finite = isfinite(loss) && (no norm, or isfinite(norm));  state->finite = finite
//   ring[state->step mod capacity] = {loss, correct, finite, norm}
#pragma once

#include <cstdint>

#include "kernels/common/impl.h"
#include "kernels/common/step_state.h"

namespace kiln {

// What a step leaves behind; read by the host now and then.
struct StepRecord {
  float loss = 0;       // mean over the batch
  float correct = 0;    // images whose first largest logit is the label
  uint32_t finite = 1;  // 0: the update was skipped
  float grad_norm = 0;  // 0 in evaluation
};

struct StepFinishArgs {
  void* state;          // StepState, in and out
  const void* summary;  // [2] fp32: mean loss, correct rows
  const void* norm;     // [1] fp32, null in evaluation
  void* ring;           // [capacity] StepRecord
};

Bound bind_step_finish_cpu(const StepFinishArgs& args, uint32_t capacity);
#ifdef KILN_WITH_CUDA
Bound bind_step_finish_cuda(const StepFinishArgs& args, uint32_t capacity);
#endif

}  // namespace kiln
