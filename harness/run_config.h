// Reading an earlier run's config.json, for `kiln eval --checkpoint RUN_DIR` and `kiln train --resume
// RUN_DIR`.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "harness/train_options.h"
#include "nn/description.h"

namespace kiln {

// Throws Error where `folder` is no run folder or the file is damaged. `flag` names the flag in the message.
nlohmann::ordered_json read_run_config(const std::string& flag, const std::string& folder);

NetworkDescription network_of_run(const nlohmann::ordered_json& config);

// What the run's network expects of its images, and what its classes are called.
struct RunData {
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<float> mean, std;          // a channel, in units of the pixel range 0..1
  std::vector<std::string> class_names;  // empty where the run does not name them
  std::string precision;                 // that it was trained in
};
RunData data_of_run(const nlohmann::ordered_json& config);

// Gives the run's data set to what was not named on the command line.
void fill_data_from_run(const nlohmann::ordered_json& config, CommonOptions* options);

// The statistics that the run normalised its images with, which its weights expect.
void take_normalisation_of_run(const nlohmann::ordered_json& config, DataPair* data);

// Which implementation each of the run's problems had, by "<op>.<pass> <problem>".
std::map<std::string, std::string> implementations_of_run(const nlohmann::ordered_json& config);

// The steps that the run in `folder` had done when it wrote its checkpoint. Throws Error where it has none.
long long steps_of_run(const std::string& folder);

// Gives the run's values to what was not named on the command line. Throws Error for a --seed other than the
// run's. The limit --max-steps is not taken over.
void fill_from_run(const nlohmann::ordered_json& config, bool seed_given, TrainFlags* flags);

}  // namespace kiln
