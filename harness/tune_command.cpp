// `kiln tune`: measures every implementation and config on the problems of a network and remembers the
// fastest.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>

#include "bench/layer_options.h"
#include "bench/layer_rows.h"
#include "harness/build_info.h"
#include "harness/commands.h"
#include "harness/common_options.h"
#include "harness/number_flags.h"
#include "harness/nvml.h"
#include "harness/progress.h"
#include "harness/tuning.h"
#include "kernels/common/error.h"
#include "nn/lower.h"

namespace kiln {
namespace {

struct Flags {
  CommonOptions common;
  std::vector<int> batches = {512};
  std::vector<std::string> problems;
  std::string suite, out;
  double seconds = 0.2;
  bool again = false, all = false;
};

// One thing to tune.
struct Task {
  const PassInfo* pass;
  AnyProblem problem;
};

class Tuner {
 public:
  Tuner(const Device& device, const Flags& flags)
      : device_(device),
        path_(flags.out.empty() ? default_tune_cache() : flags.out),
        cache_(TuneCache::load(path_)),
        all_(flags.all),
        bench_(device, ceilings_,
               {.sample_seconds = 0.003, .target_pct = 0.3, .most_seconds = flags.seconds}) {
    if (device.is_cuda()) driver_ = Nvml(device.uuid).driver_version();
  }

  // Returns how much slower the heuristic's choice is than the best: 1 where it is the best; NaN where
  // nothing was measured.
  double tune(const Task& task, bool again) {
    const std::string key = tuning_key(task.pass->op, task.pass->pass, task.problem.text, task.problem.dtype);
    const std::vector<std::string> choices = task.pass->choices(task.problem, device_);
    const std::string signature = tuning_signature(choices);
    const TunedChoice* known = cache_.find(device_.name, key);
    if (!again && known && known->signature == signature) return known->heuristic_us / known->us;

    // The heuristic's own choice runs under its bare name, so that its config counts too.
    std::vector<LayerRow> rows;
    std::set<std::string> seen;
    const auto add = [&](const std::string& impl) {
      const bool naive = impl == "naive" || impl == "cpu_naive";
      if (naive && choices.size() > 1) return;  // known to be slow
      if (seen.insert(impl).second) {
        rows.push_back({task.pass, "", task.problem.text, task.problem.dtype, impl, false});
      }
    };
    const std::string heuristic = choices.front().substr(0, choices.front().find(':'));
    add(heuristic);
    for (const std::string& choice : choices) add(choice);
    const std::vector<RowResult> results = bench_.measure(rows);

    TunedChoice best{.impl = heuristic,
                     .us = results[0].counters.cold_us,
                     .heuristic = heuristic,
                     .heuristic_us = results[0].counters.cold_us,
                     .signature = signature,
                     .driver = driver_,
                     .kiln = version()};
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!results[i].error.empty()) {
        std::fprintf(stderr, "%s %s: %s\n", key.c_str(), rows[i].impl.c_str(), results[i].error.c_str());
        continue;
      }
      // Within the noise the heuristic keeps its choice.
      constexpr double kNoise = 0.995;
      if (std::isnan(best.us) || results[i].counters.cold_us < kNoise * best.us) {
        best.impl = rows[i].impl;
        best.us = results[i].counters.cold_us;
      }
    }
    if (std::isnan(best.us) || std::isnan(best.heuristic_us)) return LayerCounters::kVoid;
    for (size_t i = 0; all_ && i < rows.size(); ++i) {
      if (!results[i].error.empty()) continue;
      std::printf("  %9.2f us  +-%.1f %%  %s\n", results[i].counters.cold_us, results[i].counters.spread_pct,
                  rows[i].impl.c_str());
    }
    std::printf("%-74s %-34s %9.2f us   heuristic %9.2f us  x%.2f\n", key.c_str(), best.impl.c_str(), best.us,
                best.heuristic_us, best.heuristic_us / best.us);
    std::fflush(stdout);
    const double ratio = best.heuristic_us / best.us;
    cache_.set(device_.name, key, std::move(best));
    cache_.save(path_);  // what is measured is kept, whatever happens next
    return ratio;
  }

  const std::string& path() const { return path_; }

 private:
  const Device& device_;
  std::string path_, driver_;
  TuneCache cache_;
  bool all_;
  Ceilings ceilings_;  // none: rates are bench_layers' matter
  LayerBench bench_;
};

std::vector<Task> tasks_of_network(const Flags& flags, const Device& device, DType dtype) {
  const DataPair data = load_images(flags.common, stderr);
  const ShapedNetwork network = infer_shapes(
      load_network(flags.common.model),
      {.h = data.train.height, .w = data.train.width, .c = data.train.channels}, data.train.classes);
  const ParameterLayout layout(network);
  std::vector<Task> tasks;
  for (const int batch : flags.batches) {
    for (const bool training : {true, false}) {
      const StepList list =
          lower(network, layout, device,
                {.batch = batch,
                 .training = training,
                 .dtype = dtype,
                 .impl = ImplChoice(flags.common.impl),
                 .augment = {.m = static_cast<int>(data.train.count()), .pad = 4, .flip = Flip::kRandom}});
      for (const Step& step : list.steps) {
        if (step.problem.empty()) continue;
        const PassInfo& pass = find_pass(step.pass);
        DType type = dtype;
        if (pass.op == "grad_norm") type = DType::kF32;  // gradients are fp32 whatever the network's type
        tasks.push_back({&pass, pass.parse(step.problem, type)});
      }
    }
  }
  return tasks;
}

// The passes that take each problem; those that do not (its dtype, its epilogue) are left out. Throws Error
// for an `asked` problem that none takes.
std::vector<Task> tasks_of_problems(const std::vector<NamedProblem>& problems, DType dtype, bool asked) {
  std::vector<Task> tasks;
  for (const NamedProblem& named : problems) {
    const size_t before = tasks.size();
    std::string refusal;
    for (const PassInfo& pass : all_passes()) {
      if (pass.op != named.op || !named.has_pass(pass.pass)) continue;
      try {
        tasks.push_back({&pass, pass.parse(named.text, dtype)});
      } catch (const Error& error) {
        refusal = error.what();
      }
    }
    if (asked && tasks.size() == before) fail_usage("--problem: " + refusal);
  }
  return tasks;
}

int run(const Flags& flags) {
  const Device& device = select_device(flags.common, stderr);
  const DType dtype = select_precision(flags.common.precision, device);
  if (!flags.common.tune_cache.empty()) fail_usage("--tune-cache: `kiln tune` reads and writes --out");
  for (const int batch : flags.batches) {
    if (batch < 1) fail_usage("--batch must be at least 1, got " + std::to_string(batch));
  }
  std::vector<Task> tasks;
  if (!flags.problems.empty()) {
    std::vector<NamedProblem> named;
    for (const std::string& text : flags.problems) {
      for (NamedProblem& p : problems_from_text(text)) named.push_back(std::move(p));
    }
    tasks = tasks_of_problems(named, dtype, true);
  } else if (!flags.suite.empty()) {
    tasks = tasks_of_problems(suite_problems(suite_from_name(flags.suite)), dtype, false);
  } else {
    tasks = tasks_of_network(flags, device, dtype);
  }
  std::vector<Task> unique;
  std::set<std::string> seen;
  for (Task& task : tasks) {
    const std::string key = tuning_key(task.pass->op, task.pass->pass, task.problem.text, task.problem.dtype);
    // Where there is one way alone there is nothing to choose.
    if (task.pass->choices(task.problem, device).size() > 1 && seen.insert(key).second) {
      unique.push_back(std::move(task));
    }
  }

  Tuner tuner(device, flags);
  const auto start = std::chrono::steady_clock::now();
  double log_sum = 0, worst = 1;
  int measured = 0;
  for (size_t i = 0; i < unique.size(); ++i) {
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double left = i ? elapsed / static_cast<double>(i) * static_cast<double>(unique.size() - i) : 0;
    std::fprintf(stderr, "[%zu/%zu%s]\n", i + 1, unique.size(),
                 i ? (", " + clock_time(left) + " left").c_str() : "");
    const double ratio = tuner.tune(unique[i], flags.again);
    if (std::isnan(ratio)) continue;
    log_sum += std::log(ratio);
    worst = std::max(worst, ratio);
    ++measured;
  }
  std::printf("%d problems; heuristic: geometric mean %.1f %% above the best, worst %.1f %%\ncache: %s\n",
              measured, measured ? 100 * (std::exp(log_sum / measured) - 1) : 0.0, 100 * (worst - 1),
              tuner.path().c_str());
  return 0;
}

}  // namespace

Command add_tune_command(CLI::App& app) {
  CLI::App* sub = app.add_subcommand(
      "tune", "measure every implementation and config of a network's problems and remember the fastest");
  auto flags = std::make_shared<Flags>();
  add_common_options(*sub, flags->common);
  sub->add_option("--batch", flags->batches, "batch sizes, comma-separated; name the one that you train with")
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option(
      "--problem", flags->problems,
      "these problems instead of a network's: conv2d.fwd:n512_h32_w32_c64_k64_r3, conv2d:..., @FILE");
  sub->add_option("--suite", flags->suite, "the problems of a suite of bench_layers: peers, nets, full");
  sub->add_option("--out", flags->out,
                  "the cache to add to (default: the user's, " + default_tune_cache() + ")");
  sub->add_option("--seconds", flags->seconds, "most seconds a choice")
      ->check(above_zero())
      ->capture_default_str();
  sub->add_flag("--all", flags->all, "print the time of every choice, not of the fastest alone");
  sub->add_flag("--again", flags->again, "measure what the cache knows already, too");
  sub->footer(
      "Every choice is checked against the reference before it is timed. train, eval and the benchmarks take "
      "what\n"
      "the cache holds for their GPU, unless --impl or --tune-cache says otherwise; a run's config.json "
      "records what\n"
      "it got. Examples:\n"
      "  kiln tune --model resnet18 --batch 512\n"
      "  kiln tune --problem conv2d.fwd:n512_h32_w32_c64_k64_r3 --out my.json");
  return {sub, [flags] { return run(*flags); }};
}

}  // namespace kiln
