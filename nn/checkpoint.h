// Checkpoints: the weights file, which PyTorch can read, and the state file, which continues a run.
#pragma once

#include <string>

#include "nn/network.h"

namespace kiln {

// Weights: every parameter as "<id>.weight", "<id>.bias" in PyTorch's layout (fp32, from the masters), and of
// each batchnorm running_mean, running_var and num_batches_tracked.
void save_weights(const Network& network, const std::string& path);
// Throws Error naming the first tensor that is missing, unknown or of another shape; nothing is changed then.
void load_weights(Network* network, const std::string& path);

// The tensors of a weights file for a network, checked as load_weights() checks them.
struct WeightTensors {
  std::vector<NamedTensor> parameters;  // in the order of layout.parameters()
  std::vector<NamedTensor> statistics;  // in the order of layout.statistics()
  std::vector<int64_t> tracked;         // in the order of layout.trackers()
};
WeightTensors read_weights(const ParameterLayout& layout, const std::string& path);

// Where a run stands. Its order of images follows from all of these.
struct RunPosition {
  long long step = 0;  // steps done
  uint64_t seed = 0;
  long long batch = 0, train_images = 0;
  long long skipped = 0;  // updates skipped because something was not finite
};

// State: the optimizer's tensors of each parameter, "<parameter>.velocity" of sgd, "<parameter>.exp_avg" and
// "<parameter>.exp_avg_sq" of adamw (PyTorch's names), and the position.
void save_state(const Network& network, const RunPosition& position, const std::string& path);
// Loads the optimizer's tensors and returns the position. Throws Error as load_weights does, and for the
// state of another optimizer.
RunPosition load_state(Network* network, const std::string& path);

}  // namespace kiln
