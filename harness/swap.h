// What other implementations would do to a training step: each is trained for a few steps of its own and
// compared with the default.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nn/trainer.h"

namespace kiln {

// One alternative of one assignment, "conv2d.fwd=naive"; "" is the default.
struct SwapChoice {
  std::string text;
  ImplChoice impl;
};

// 'conv2d.fwd=naive|wgmma,batchnorm.*=naive': "conv2d.fwd=naive", "conv2d.fwd=wgmma", "batchnorm.*=naive".
std::vector<std::string> swap_choices(const std::string& impl);

// A step that the choice does otherwise, or only one of the two does.
struct SwappedStep {
  std::string layer, pass, problem;
  std::string default_impl, impl;  // "" where that side has no such step
  double default_us = 0, us = 0;   // means over the replays
};

// How two runs' losses compare, step by step.
struct LossComparison {
  int steps = 0;
  bool equal = true;          // bit by bit
  double max_rel_diff = 0;    // infinite where one of the two is not finite
  double first_rel_diff = 0;  // of the first step: later ones start from weights that differ already
};
LossComparison compare_losses(const std::vector<float>& a, const std::vector<float>& b, int most_steps);

struct SwapResult {
  std::string text;  // the choice; "" for the default's second run
  std::vector<SwappedStep> steps;
  double default_us = 0, us = 0;  // sums over `steps`
  double predicted_us = 0;        // the default's step, less default_us, plus us
  double measured_us = 0;         // the step with the profiler off
  LossComparison losses;
};

struct SwapReport {
  double step_us = 0;  // the default's, measured
  std::string source;  // of the steps' times
  int batch = 0, replays = 0;
  std::vector<SwapResult> results;  // a choice each, and last the default once more
};

struct SwapSetup {
  const NetworkDescription& network;
  const DataPair& data;
  const Device& device;
  TrainOptions options;  // impl: the default; max_steps is set by run_swap
  ProfileOptions profile;
};
inline constexpr int kSwapLossSteps = 20;

// Every choice is built once before anything is trained: throws Error naming one that the network or the
// device cannot do. `on_start` is told what runs next ("" for the default).
SwapReport run_swap(const SwapSetup& setup, const std::vector<SwapChoice>& choices,
                    const std::function<void(const std::string& text)>& on_start = {});

std::string swap_text(const SwapReport& report);
nlohmann::ordered_json swap_json(const SwapReport& report);

}  // namespace kiln
