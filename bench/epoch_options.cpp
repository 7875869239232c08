#include "bench/epoch_options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "harness/number_flags.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

void add_flags(CLI::App& app, EpochOptions& o) {
  app.add_option("--network", o.networks, "networks, comma-separated: built-in names or JSON files")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--device", o.common.device, "cpu or cuda (default: cuda where there is a GPU)");
  app.add_option("--precision", o.precisions,
                 "fp32, bf16 or both with a comma (default: bf16 on cuda, fp32 on cpu)")
      ->delimiter(',');
  app.add_option("--batch", o.batches,
                 "images a step, comma-separated (default: 128,512,1024 on cuda, 512 on cpu; of --sweep "
                 "1,2,4,...,1024)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--data", o.common.data,
                 "images, as `kiln train --data` takes them (default: 50,000 of the built-in set)");
  app.add_option("--impl", o.common.impl, "implementations, as `kiln train` takes them");
  app.add_option("--tune-cache", o.common.tune_cache, "tuned choices, as `kiln train` takes them");
  app.add_option("--seconds", o.seconds, "a row's time on cuda; it ends with the first whole epoch behind it")
      ->check(above_zero())
      ->capture_default_str();
  app.add_option("--energy-seconds", o.energy_seconds,
                 "the shortest window that energy is measured over, on cuda; 0: no energy")
      ->check(zero_or_above())
      ->capture_default_str();
  app.add_option("--energy-batch", o.energy_batches,
                 "batches whose rows have energy, comma-separated; 0: every row (default: epoch_train and "
                 "epoch_infer at batch 512, or at every batch where 512 is not among them)")
      ->delimiter(',')
      ->check(zero_or_above());
  app.add_option("--cpu-seconds", o.cpu_seconds,
                 "a training row's time on the cpu; evaluation has half of it, predict a sixth")
      ->check(above_zero())
      ->capture_default_str();
  app.add_option("--cpu-full", o.cpu_full,
                 "networks that run all 50,000 images on the cpu; of the others one batch is run again and "
                 "again and scaled; '' for none")
      ->delimiter(',')
      ->capture_default_str();
  app.add_flag("--augment,!--no-augment", o.augment,
               "random crop (pad 4) and flip inside the timed training step (default: with)");
  app.add_option(
         "--sweep", o.sweep,
         "only this: inference and training step of these networks at every --batch, on the CPU and on "
         "the GPU, and from which batch on the GPU is faster")
      ->delimiter(',');
  app.add_option("--sweep-seconds", o.sweep_seconds, "time of one point of a sweep")
      ->check(above_zero())
      ->capture_default_str();
  app.add_option("--threads", o.common.threads, "CPU threads")->check(above_zero());
  app.footer(
      "Rows (docs/measuring.md): epoch_train, epoch_infer, predict, latency_b1; with --sweep sweep_infer and "
      "sweep_train.\n"
      "Google Benchmark's flags too: --benchmark_filter=REGEX, --benchmark_out=FILE.json, ...");
}

}  // namespace

EpochOptions parse_epoch_options(int* argc, char** argv) {
  EpochOptions o;
  CLI::App app("bench_epoch: whole networks, seconds an epoch, latency, energy an image");
  add_flags(app, o);
  app.allow_extras();
  try {
    app.parse(*argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) std::exit(app.exit(error));
    fail_usage(error.what());
  }
  const std::vector<std::string> rest = app.remaining();
  for (const std::string& word : rest) {
    o.table_to_stderr =
        o.table_to_stderr || word == "--benchmark_format=json" || word == "--benchmark_format=csv";
  }
  // Google Benchmark is handed what is left, as pointers into argv.
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    for (const std::string& word : rest) {
      if (word == argv[i]) {
        argv[kept++] = argv[i];
        break;
      }
    }
  }
  *argc = kept;
  return o;
}

std::vector<int> batches_for(const EpochOptions& o, const Device& device) {
  if (!o.batches.empty()) return o.batches;
  return device.is_cuda() ? std::vector<int>{128, 512, 1024} : std::vector<int>{512};
}

std::vector<int> sweep_batches(const EpochOptions& o) {
  std::vector<int> batches = o.batches;
  for (int batch = 1; o.batches.empty() && batch <= 1024; batch *= 2) batches.push_back(batch);
  return batches;
}

}  // namespace kiln
