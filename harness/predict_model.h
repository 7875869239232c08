// Which network `kiln predict` uses, and what its images are like: from a run folder, or from flags.
#pragma once

#include <string>
#include <vector>

#include "harness/common_options.h"
#include "nn/description.h"
#include "nn/layer_rules.h"

namespace kiln {

struct PredictModelFlags {
  CommonOptions common;  // --model, --device, --precision, --impl, --tune-cache, --data, --threads
  bool model_given = false;
  std::string run, checkpoint;
  std::string classes;  // a number, or names with commas
  std::string size;     // "32" or "32x48", height first
  std::vector<float> mean, std;
};

struct PredictModel {
  NetworkDescription network;
  std::string weights;  // a safetensors file
  ValueShape input;
  int classes = 0;
  std::vector<std::string> class_names;  // empty where they are not known
  std::vector<float> mean, std;          // a channel, in units of the pixel range 0..1
  std::string precision;                 // what the run was trained in, "" where that is not known
  // The class's name, else its index.
  std::string class_name(size_t index) const;
};

void add_predict_model_options(CLI::App& app, PredictModelFlags& flags);

// Throws Error for flags that do not fit together, and for a run folder that is none.
PredictModel find_predict_model(const PredictModelFlags& flags);

}  // namespace kiln
