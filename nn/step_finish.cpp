#include "nn/step_finish.h"

#include <cmath>

namespace kiln {

Bound bind_step_finish_cpu(const StepFinishArgs& args, uint32_t capacity) {
  return Bound([args, capacity](Stream) {
    StepState& state = *static_cast<StepState*>(args.state);
    const float* summary = static_cast<const float*>(args.summary);
    const float norm = args.norm ? *static_cast<const float*>(args.norm) : 0.0f;
    state.finite = std::isfinite(summary[0]) && std::isfinite(norm) ? 1 : 0;
    static_cast<StepRecord*>(args.ring)[state.step % capacity] = {summary[0], summary[1], state.finite, norm};
  });
}

}  // namespace kiln
