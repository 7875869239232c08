#include "harness/run_config.h"

#include <filesystem>
#include <fstream>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

Json read_json(const std::string& path, const std::string& missing) {
  std::ifstream in(path);
  if (!in) fail_usage(missing);
  try {
    return Json::parse(in);
  } catch (const nlohmann::json::exception& e) {
    fail_usage("'" + path + "' is damaged: " + e.what());
  }
}

// Runs `read`; what the JSON library objects to in the run's `file` becomes an Error.
template <class Read>
auto reading(const Read& read, const std::string& file = "config.json") {
  try {
    return read();
  } catch (const nlohmann::json::exception& e) {
    fail_usage("the run's " + file + " is damaged: " + e.what());
  }
}

template <class T>
void fill(const Json& options, const char* key, std::optional<T>* value) {
  if (!*value) *value = options.at(key).get<T>();
}

// Of options that not every run has.
template <class T>
void fill_if_there(const Json& options, const char* key, std::optional<T>* value) {
  if (options.contains(key)) fill(options, key, value);
}

// Of a run's optimizer and schedule the constants go with their choice: a flag that names another one leaves
// them out.
void fill_choices(const Json& options, TrainFlags* f) {
  const std::string optimizer = options.value("optimizer", name_of(Optimizer::kSgd));
  if (!f->optimizer) f->optimizer = optimizer;
  if (*f->optimizer == optimizer) {
    fill_if_there(options, "momentum", &f->momentum);
    fill_if_there(options, "beta1", &f->beta1);
    fill_if_there(options, "beta2", &f->beta2);
    fill_if_there(options, "adam_eps", &f->adam_eps);
    f->no_nesterov = f->no_nesterov || !options.value("nesterov", true);
  }
  fill(options, "schedule", &f->schedule);
  if (*f->schedule == options.at("schedule").get<std::string>()) {
    fill_if_there(options, "step_epochs", &f->step_epochs);
    fill_if_there(options, "step_factor", &f->step_factor);
  }
}

// A run of before --flip has true or false.
void fill_flip(const Json& options, TrainFlags* f) {
  if (!options.at("flip").is_boolean()) return fill(options, "flip", &f->flip);
  if (!f->flip) f->flip = name_of(options.at("flip").get<bool>() ? Flip::kRandom : Flip::kNone);
}

template <class T>
void fill(const Json& value, T* where) {
  if (*where == T{}) *where = value.get<T>();
}

}  // namespace

Json read_run_config(const std::string& flag, const std::string& folder) {
  return read_json((fs::path(folder) / "config.json").string(),
                   flag + " '" + folder + "' is no run folder: it has no config.json");
}

NetworkDescription network_of_run(const Json& config) {
  return reading([&] { return parse_network(config.at("network").dump()); });
}

std::map<std::string, std::string> implementations_of_run(const Json& config) {
  return reading([&] {
    std::map<std::string, std::string> recorded;
    for (const auto& [pass, impl] : config.at("implementations").items()) recorded[pass] = impl;
    return recorded;
  });
}

long long steps_of_run(const std::string& folder) {
  const Json summary =
      read_json((fs::path(folder) / "summary.json").string(),
                "the run in '" + folder + "' has no summary.json: it ended before its checkpoint");
  return reading([&] { return summary.at("steps").get<long long>(); }, "summary.json");
}

RunData data_of_run(const Json& config) {
  return reading([&] {
    const Json& data = config.at("data");
    return RunData{.height = data.at("height").get<int>(),
                   .width = data.at("width").get<int>(),
                   .channels = data.at("channels").get<int>(),
                   .classes = data.at("classes").get<int>(),
                   .mean = data.at("mean").get<std::vector<float>>(),
                   .std = data.at("std").get<std::vector<float>>(),
                   .class_names = data.value("class_names", std::vector<std::string>()),
                   .precision = config.at("options").at("precision").get<std::string>()};
  });
}

void fill_data_from_run(const Json& config, CommonOptions* o) {
  reading([&] {
    if (!o->data.empty()) return;
    const Json& data = config.at("data");
    o->data = data.value("path", "");
    fill(data.at("train_images"), &o->train_images);
    fill(data.at("test_images"), &o->test_images);
  });
}

void take_normalisation_of_run(const Json& config, DataPair* data) {
  reading([&] {
    const auto mean = config.at("data").at("mean").get<std::vector<float>>();
    const auto std = config.at("data").at("std").get<std::vector<float>>();
    if (mean.size() != data->mean.size() || std.size() != data->std.size()) {
      fail_usage("the run's images have " + std::to_string(mean.size()) + " channels, these have " +
                 std::to_string(data->mean.size()));
    }
    data->mean = mean;
    data->std = std;
  });
}

void fill_from_run(const Json& config, bool seed_given, TrainFlags* f) {
  fill_data_from_run(config, &f->common);
  reading([&] {
    const Json& options = config.at("options");
    fill(options, "epochs", &f->epochs);
    fill(options, "warmup_epochs", &f->warmup);
    fill(options, "batch", &f->batch);
    fill(options, "pad", &f->pad);
    fill_if_there(options, "pad_mode", &f->pad_mode);
    fill(options, "cutout", &f->cutout);
    fill(options, "lr", &f->lr);
    fill(options, "weight_decay", &f->weight_decay);
    fill(options, "label_smoothing", &f->label_smoothing);
    fill_if_there(options, "clip_norm", &f->clip_norm);
    fill_choices(options, f);
    fill(options.at("fusions_off"), &f->fusions_off);
    if (options.contains("fusions_on")) fill(options.at("fusions_on"), &f->fusions_on);
    fill(options.at("drain_every"), &f->drain_every);
    fill(options.at("precision"), &f->common.precision);
    fill(options.at("impl"), &f->common.impl);
    fill(config.at("device").at("kind"), &f->common.device);
    fill_flip(options, f);
    const bool zero_init = options.value("zero_init_residual", false);
    if (f->zero_init_residual && !zero_init) {
      fail_usage("--zero-init-residual: a resumed run keeps the weights it began with");
    }
    f->zero_init_residual = zero_init;
    const auto seed = options.at("seed").get<unsigned long long>();
    if (seed_given && f->seed != seed) {
      fail_usage("--seed " + std::to_string(f->seed) + ": a resumed run keeps its seed, " +
                 std::to_string(seed));
    }
    f->seed = seed;
  });
}

}  // namespace kiln
