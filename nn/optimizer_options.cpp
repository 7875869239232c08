#include "nn/optimizer_options.h"

#include "kernels/common/error.h"

namespace kiln {

Optimizer optimizer_from_name(const std::string& name) {
  for (const Optimizer known : {Optimizer::kSgd, Optimizer::kAdamw}) {
    if (name == name_of(known)) return known;
  }
  fail_usage(unknown_name_message("optimizer", name, {"sgd", "adamw"}));
}

const char* name_of(Optimizer optimizer) { return optimizer == Optimizer::kAdamw ? "adamw" : "sgd"; }

}  // namespace kiln
