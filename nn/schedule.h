// The learning rate of a step.
#pragma once

#include "nn/trainer.h"

namespace kiln {

// Steps count from 0 to total - 1; `warmup`, `total` and `step_every` are in steps.
struct LearningRate {
  Schedule schedule = Schedule::kConstant;
  double peak = 0;
  double final_factor = 0;  // rate at the end / peak
  double warmup = 0;
  double total = 1;
  double step_every = 1;     // kStep: steps from one drop to the next
  double step_factor = 0.1;  // kStep: what a drop multiplies the rate with

  // Warm-up: peak * (step + 1) / warmup while step + 1 < warmup. Behind it, with u = (step - warmup) / (total
  // - warmup) and f = final_factor:
  //   constant  peak
  //   linear    peak * (1 - (1 - f) * u)
  //   cosine    peak * (f + (1 - f) * (1 + cos(pi u)) / 2)     (PyTorch's CosineAnnealingLR, T_max = total)
  //   step      peak * step_factor^floor(step / step_every)    (PyTorch's StepLR; counted from step 0)
  // one_cycle is PyTorch's OneCycleLR with linear legs: from peak / 25 up to the peak at step top - 1, top =
  // warmup or 0.3 * total without one, then down to peak * f at the last step.
  double at(long long step) const;
};

}  // namespace kiln
