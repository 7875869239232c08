// `kiln eval`: loss and accuracy of a checkpoint on the test images.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "harness/build_info.h"
#include "harness/commands.h"
#include "harness/common_options.h"
#include "harness/number_flags.h"
#include "harness/progress.h"
#include "harness/run_config.h"
#include "kernels/common/error.h"
#include "nn/trainer.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct EvalFlags {
  CommonOptions common;
  bool model_given = false;
  std::string checkpoint;
  int batch = 512;
  bool json = false;
};

int evaluate(EvalFlags flags, const std::string& command_line) {
  std::error_code ignored;
  if (!fs::exists(flags.checkpoint, ignored))
    fail_usage("--checkpoint '" + flags.checkpoint + "' does not exist");
  const bool is_run = fs::is_directory(flags.checkpoint, ignored);
  const Json run = is_run ? read_run_config("--checkpoint", flags.checkpoint) : Json();
  if (is_run) fill_data_from_run(run, &flags.common);
  const NetworkDescription network =
      is_run && !flags.model_given ? network_of_run(run) : load_network(flags.common.model);
  const std::string weights =
      is_run ? (fs::path(flags.checkpoint) / "weights.safetensors").string() : flags.checkpoint;
  const Device& device = select_device(flags.common, stderr);

  TrainOptions options;
  options.precision = select_precision(flags.common.precision, device);
  options.impl = select_impl(flags.common, device, stderr);
  options.batch = flags.batch;
  DataPair data = load_images(flags.common, stderr);
  if (is_run) take_normalisation_of_run(run, &data);
  Trainer trainer(network, data, device, options);
  for (const std::string& note : trainer.impl_notes()) std::fprintf(stderr, "note: %s\n", note.c_str());
  trainer.load_weights(weights);
  const EvalResult result = trainer.evaluate();

  const double rate = result.seconds > 0 ? static_cast<double>(result.images) / result.seconds : 0;
  if (flags.json) {
    const Json json = {{"network", network.name},
                       {"checkpoint", weights},
                       {"device", device_json(device, "")},
                       {"precision", name_of(options.precision)},
                       {"data", data_json(data, flags.common.data)},
                       {"test_accuracy", result.accuracy},
                       {"test_loss", result.loss},
                       {"images", result.images},
                       {"correct", result.correct},
                       {"eval_seconds", result.seconds},
                       {"eval_images_per_s", rate},
                       {"kiln_version", version()},
                       {"commit", commit()},
                       {"command_line", command_line}};
    std::printf("%s\n", json.dump(2).c_str());
  } else {
    std::printf("%s on %s, %s; %s: test accuracy %.2f %% (%lld of %lld), test loss %.4f, %s images/s\n",
                network.name.c_str(), device.name.c_str(), name_of(options.precision), data.test.name.c_str(),
                100 * result.accuracy, result.correct, result.images, result.loss,
                with_thousands(rate).c_str());
  }
  return 0;
}

}  // namespace

Command add_eval_command(CLI::App& app, const std::string& command_line) {
  CLI::App* sub = app.add_subcommand("eval", "loss and accuracy of a checkpoint on the test images");
  auto flags = std::make_shared<EvalFlags>();
  sub->add_option("--checkpoint", flags->checkpoint,
                  "weights.safetensors (PyTorch's names and layouts), or a run folder, which also names the "
                  "network and "
                  "the data")
      ->required();
  add_common_options(*sub, flags->common);
  sub->add_option("--batch", flags->batch, "images a step")->check(above_zero())->capture_default_str();
  sub->add_flag("--json", flags->json, "print one JSON object instead of a line");
  sub->footer(
      "Examples:\n"
      "  kiln eval --checkpoint runs/first --data ~/cifar-10-batches-bin\n"
      "  kiln eval --checkpoint w.safetensors --model resnet18 --device cpu --json");
  return {sub, [flags, sub, command_line] {
            flags->model_given = sub->count("--model") > 0;
            return evaluate(*flags, command_line);
          }};
}

}  // namespace kiln
