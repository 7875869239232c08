#include "harness/predict_model.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>

#include "harness/number_flags.h"
#include "harness/run_config.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr int kLargestSide = 65536, kMostClasses = 1 << 20;

// "32" or "32x48" as height and width.
void read_size(const std::string& text, ValueShape* input) {
  int h = 0, w = 0, used = 0;
  const int found = std::sscanf(text.c_str(), "%dx%d%n", &h, &w, &used);
  if (found < 2) {
    used = 0;
    std::sscanf(text.c_str(), "%d%n", &h, &used);
    w = h;
  }
  if (used != static_cast<int>(text.size()) || h < 1 || w < 1 || h > kLargestSide || w > kLargestSide) {
    fail_usage("--size '" + text + "' must be a number of pixels, or HEIGHTxWIDTH");
  }
  input->h = h;
  input->w = w;
}

// A number of classes, or their names. `expected`: 0 where it is not known yet.
void read_classes(const std::string& text, int expected, PredictModel* model) {
  model->class_names.clear();
  if (text.find_first_not_of("0123456789") == std::string::npos) {
    model->classes = text.size() < 8 ? std::atoi(text.c_str()) : 0;
    if (model->classes < 2 || model->classes > kMostClasses) {
      fail_usage("--classes '" + text + "' must be at least 2, or the classes' names with commas");
    }
  } else {
    model->class_names = CLI::detail::split(text, ',');
    model->classes = static_cast<int>(model->class_names.size());
    for (const std::string& name : model->class_names) {
      if (name.empty()) fail_usage("--classes '" + text + "': a name is empty");
    }
  }
  if (expected > 0 && model->classes != expected) {
    fail_usage("--classes names " + std::to_string(model->classes) + " classes; the network has " +
               std::to_string(expected));
  }
}

PredictModel model_of_run(const PredictModelFlags& f, const std::string& flag, const std::string& folder) {
  for (const auto& [given, name] : {std::pair{f.model_given, "--model"},
                                    {!f.common.data.empty(), "--data"},
                                    {!f.size.empty(), "--size"},
                                    {!f.mean.empty(), "--mean"},
                                    {!f.std.empty(), "--std"}}) {
    if (given) fail_usage(std::string(name) + ": a run folder says this itself; leave the flag out");
  }
  const nlohmann::ordered_json config = read_run_config(flag, folder);
  const RunData data = data_of_run(config);
  PredictModel model;
  model.network = network_of_run(config);
  model.weights = (fs::path(folder) / "weights.safetensors").string();
  if (std::error_code error; !fs::exists(model.weights, error)) {
    fail_usage(flag + " '" + folder +
               "': the run has no weights.safetensors; it ended before its checkpoint");
  }
  model.input = {.h = data.height, .w = data.width, .c = data.channels};
  model.classes = data.classes;
  model.class_names = data.class_names;
  model.mean = data.mean;
  model.std = data.std;
  model.precision = data.precision;
  if (!f.classes.empty()) read_classes(f.classes, data.classes, &model);
  return model;
}

void check_normalisation(const PredictModelFlags& f) {
  if (f.mean.size() != f.std.size()) {
    fail_usage("--mean has " + std::to_string(f.mean.size()) + " numbers, --std " +
               std::to_string(f.std.size()) + "; both need one a channel");
  }
  for (const float v : f.mean) {
    if (!std::isfinite(v)) fail_usage("--mean: every number must be finite");
  }
  for (const float v : f.std) {
    if (!std::isfinite(v) || v <= 0) fail_usage("--std: every number must be above 0");
  }
}

PredictModel model_of_weights(const PredictModelFlags& f) {
  std::error_code error;
  if (!fs::exists(f.checkpoint, error)) fail_usage("--checkpoint '" + f.checkpoint + "' does not exist");
  check_normalisation(f);
  PredictModel model;
  model.network = load_network(f.common.model);
  model.weights = f.checkpoint;
  model.input = {.h = 32, .w = 32, .c = 3};
  if (!f.common.data.empty()) {
    const DataPair data = load_images(f.common, stderr);
    model.input = {.h = data.train.height, .w = data.train.width, .c = data.train.channels};
    model.classes = data.train.classes;
    model.class_names = data.class_names;
    model.mean = data.mean;
    model.std = data.std;
  }
  if (!f.size.empty()) read_size(f.size, &model.input);
  if (!f.mean.empty()) {
    model.mean = f.mean;
    model.std = f.std;
    model.input.c = static_cast<int>(f.mean.size());
  }
  if (!f.classes.empty()) read_classes(f.classes, 0, &model);
  if (model.classes == 0) {
    fail_usage("--checkpoint: name the classes, with --classes cat,dog,... or their number, or with --data");
  }
  if (model.mean.empty()) {
    fail_usage(
        "--checkpoint: name the normalisation that the network was trained with: --mean and --std, a number "
        "a channel in units of 0..1, or --data for those of a data set");
  }
  return model;
}

}  // namespace

std::string PredictModel::class_name(size_t index) const {
  return index < class_names.size() ? class_names[index] : std::to_string(index);
}

void add_predict_model_options(CLI::App& app, PredictModelFlags& f) {
  app.add_option("--run", f.run,
                 "folder that `kiln train` wrote: network, weights, classes, image size and normalisation");
  app.add_option(
      "--checkpoint", f.checkpoint,
      "weights.safetensors from anywhere (PyTorch's names and layouts); with --model, --classes and "
      "--mean, --std or --data");
  std::string models;
  for (const std::string& name : builtin_network_names()) models += name + ", ";
  app.add_option("--model", f.common.model,
                 "the network of --checkpoint: " + models + "or a JSON file's path (default: small_cnn)");
  app.add_option("--classes", f.classes,
                 "the classes' names in order, comma-separated, or how many there are; with --run, names for "
                 "a run that has none");
  app.add_option("--size", f.size, "side of --checkpoint's images in pixels, or HEIGHTxWIDTH (default: 32)");
  app.add_option("--mean", f.mean, "of --checkpoint: a number a channel, comma-separated, in units of 0..1")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--std", f.std, "the same for the standard deviation")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--data", f.common.data,
                 "of --checkpoint: a data set, as `kiln train` takes it, whose classes, image size and "
                 "normalisation are used");
  app.add_option("--device", f.common.device, "cpu or cuda (default: cuda where there is a GPU)");
  app.add_option("--precision", f.common.precision,
                 "fp32, or bf16 on cuda (default: the run's; for --checkpoint bf16 on cuda, fp32 on cpu)");
  app.add_option("--impl", f.common.impl, "choose implementations, as `kiln train --impl` takes them");
  app.add_option("--tune-cache", f.common.tune_cache,
                 "tuned choices, as `kiln train --tune-cache` takes them");
  app.add_option("--threads", f.common.threads, "CPU threads (default: OMP_NUM_THREADS, else all cores)")
      ->check(above_zero());
}

PredictModel find_predict_model(const PredictModelFlags& f) {
  if (f.run.empty() == f.checkpoint.empty()) {
    fail_usage("name the network with either --run RUN_FOLDER or --checkpoint WEIGHTS.safetensors");
  }
  std::error_code error;
  const bool is_folder = fs::is_directory(f.checkpoint, error);
  PredictModel model = !f.run.empty() ? model_of_run(f, "--run", f.run)
                       : is_folder    ? model_of_run(f, "--checkpoint", f.checkpoint)
                                      : model_of_weights(f);
  if (model.input.c != 1 && model.input.c != 3) {
    fail_usage("the network takes images of " + std::to_string(model.input.c) +
               " channels; image files are read as grey (1) or colour (3)");
  }
  return model;
}

}  // namespace kiln
