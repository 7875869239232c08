// The flags of `kiln train` and the recipes behind their defaults.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "harness/common_options.h"
#include "nn/trainer.h"

namespace kiln {

// What is not named on the command line comes from the network's recipe.
struct TrainFlags {
  CommonOptions common;
  std::string out, resume;
  bool overwrite = false, print_plan = false;
  unsigned long long seed = 0;
  long long max_steps = 0;
  int eval_every = 0;   // epochs, 0: only at the end
  int drain_every = 0;  // steps, 0: by device
  bool no_nesterov = false, zero_init_residual = false, no_cuda_graph = false;
  bool profile = false, nvtx = false;
  int profile_steps = 0;  // 0: by device
  int profile_rows = 15;
  std::vector<std::string> fusions_off, fusions_on;
  std::optional<double> epochs, warmup, step_epochs;
  std::optional<int> batch, pad, cutout;
  std::optional<float> lr, momentum, weight_decay, label_smoothing, beta1, beta2, adam_eps, clip_norm;
  std::optional<float> step_factor;
  std::optional<std::string> schedule, optimizer, flip, pad_mode;
};

void add_train_options(CLI::App& app, TrainFlags& flags);

// The recipe that reaches the accuracy stated in docs/guide.md; an unknown network gets small_cnn's, a smooth
// twin its network's. For adamw learning rate and weight decay are others.
TrainOptions recipe_for(const std::string& network, Optimizer optimizer = Optimizer::kSgd);

// Recipe and flags together, checked. Throws Error.
TrainOptions make_train_options(const TrainFlags& flags, const std::string& network, const Device& device,
                                DType precision);

nlohmann::ordered_json options_json(const TrainOptions& options);

}  // namespace kiln
