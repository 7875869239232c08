// `kiln swap`: what other implementations would do to a network's training step.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "harness/build_info.h"
#include "harness/commands.h"
#include "harness/number_flags.h"
#include "harness/nvml.h"
#include "harness/profile_report.h"
#include "harness/run_folder.h"
#include "harness/swap.h"
#include "harness/train_options.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

struct Flags {
  CommonOptions common;
  int batch = 0, replays = 0;
  unsigned long long seed = 0;
  std::string out;
};

int run(const Flags& flags, const std::string& command_line) {
  if (flags.common.impl.empty()) {
    fail_usage("--impl is needed: what to compare, for example 'conv2d.fwd=naive|smem_tile'");
  }
  if (!flags.out.empty()) check_output_file("--out", flags.out);
  const NetworkDescription network = load_network(flags.common.model);
  const Device& device = select_device(flags.common, stderr);
  TrainFlags train;
  train.common = flags.common;
  train.seed = flags.seed;
  if (flags.batch > 0) train.batch = flags.batch;
  const DType precision = select_precision(flags.common.precision, device);
  TrainOptions options = make_train_options(train, network.name, device, precision);
  const auto choice = [&](const std::string& text) {
    CommonOptions common = flags.common;
    common.impl = text;
    return SwapChoice{text, select_impl(common, device, stderr)};
  };
  options.impl = choice("").impl;
  std::vector<SwapChoice> choices;
  for (const std::string& text : swap_choices(flags.common.impl)) choices.push_back(choice(text));
  const DataPair data = load_images(flags.common, stderr);
  const SwapReport report = run_swap({.network = network,
                                      .data = data,
                                      .device = device,
                                      .options = options,
                                      .profile = profile_options(device, flags.replays)},
                                     choices, [](const std::string& text) {
                                       std::fprintf(stderr, "%s\n", text.empty() ? "default" : text.c_str());
                                     });
  std::printf("%s on %s, %s\n%s", network.name.c_str(), device.name.c_str(), name_of(precision),
              swap_text(report).c_str());
  if (!flags.out.empty()) {
    Json json = swap_json(report);
    json["network"] = network.name;
    json["precision"] = name_of(precision);
    json["device"] = device_json(device, Nvml(device.uuid).driver_version());
    json["data"] = data_json(data, flags.common.data);
    json["seed"] = flags.seed;
    json["kiln_version"] = version();
    json["commit"] = commit();
    json["command_line"] = command_line;
    write_file_atomically(flags.out, json.dump(2) + "\n");
  }
  return 0;
}

}  // namespace

Command add_swap_command(CLI::App& app, const std::string& command_line) {
  CLI::App* sub = app.add_subcommand(
      "swap", "measure what other implementations of some passes do to a network's training step");
  auto flags = std::make_shared<Flags>();
  add_common_options(*sub, flags->common);
  sub->add_option("--batch", flags->batch,
                  "images a step (default: that of the network's recipe, `kiln train --help`)")
      ->check(above_zero());
  sub->add_option("--seed", flags->seed, "seed of initial weights, order and augmentation")
      ->check(seed_number())
      ->capture_default_str();
  sub->add_option("--steps", flags->replays, "steps to measure (20 on cuda, 5 on cpu)")->check(above_zero());
  sub->add_option("--out", flags->out, "also write the figures to this file, as JSON");
  sub->footer(
      "Every alternative of every assignment of --impl is compared by itself with the default: the times of "
      "the\n"
      "steps that it does otherwise, the step predicted from them, the step measured, and whether the losses "
      "of\n"
      "the first 20 steps stay the same. Examples:\n"
      "  kiln swap --model resnet18 --impl 'conv2d.fwd=naive|smem_tile|cudnn'\n"
      "  kiln swap --device cpu --batch 64 --impl 'conv2d.*=cpu_naive' --out swap.json");
  return {sub, [flags, command_line] { return run(*flags, command_line); }};
}

}  // namespace kiln
