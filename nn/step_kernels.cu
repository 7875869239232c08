// step_finish (nn/step_finish.h): state->finite = isfinite(loss) && isfinite(norm), and one record into the
// ring.
//
// One thread: four loads and five stores at the end of a step. No shared memory, deterministic. The ring has
// `capacity` records, at least 1; the step number is read from device memory, so that one recorded graph
// serves every step. Mirrors nn/step_finish.cpp.
#include "kernels/common/check.h"
#include "nn/step_finish.h"

namespace kiln {
namespace {

__global__ void step_finish_kernel(StepState* __restrict__ state,      // one, in and out
                                   const float* __restrict__ summary,  // [2] mean loss, correct rows
                                   const float* __restrict__ norm,     // [1] or null
                                   StepRecord* __restrict__ ring,      // [capacity]
                                   uint32_t capacity) {
  const float gradient_norm = norm == nullptr ? 0.0f : norm[0];
  const uint32_t finite = isfinite(summary[0]) && isfinite(gradient_norm) ? 1u : 0u;
  state->finite = finite;
  StepRecord& record = ring[state->step % capacity];
  record.loss = summary[0];
  record.correct = summary[1];
  record.finite = finite;
  record.grad_norm = gradient_norm;
}

}  // namespace

Bound bind_step_finish_cuda(const StepFinishArgs& args, uint32_t capacity) {
  return Bound([args, capacity](Stream stream) {
    step_finish_kernel<<<1, 1, 0, cuda_stream(stream)>>>(
        static_cast<StepState*>(args.state), static_cast<const float*>(args.summary),
        static_cast<const float*>(args.norm), static_cast<StepRecord*>(args.ring), capacity);
    check_launch("step_finish_kernel");
  });
}

}  // namespace kiln
