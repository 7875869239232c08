#include "nn/step_fold.h"

namespace kiln {

Bound bind_step_fold_cpu(const std::vector<StepFold>& folds) {
  return Bound([folds](Stream) {
    for (const StepFold& fold : folds) {
      for (int c = 0; c < fold.channels; ++c) fold(c);
    }
  });
}

}  // namespace kiln
