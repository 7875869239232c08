// Which optimizer a run has, and its constants (formulas: kernels/optimizer/optimizer.h).
#pragma once

#include <string>

namespace kiln {

enum class Optimizer { kSgd, kAdamw };
// "sgd", "adamw"; throws Error for any other.
Optimizer optimizer_from_name(const std::string& name);
const char* name_of(Optimizer);

struct OptimizerOptions {
  Optimizer kind = Optimizer::kSgd;
  float weight_decay = 0;
  float momentum = 0;                               // sgd
  bool nesterov = false;                            // sgd
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;  // adamw
  float clip_norm = 0;                              // largest gradient norm, 0: no clipping
};

}  // namespace kiln
