// Seconds an epoch of training and of inference, whole networks:
// `epoch_train/<network>/<device>/<precision>/b<batch>/ <implementation>` and `epoch_infer/...`.
//
// An epoch is 50,000 images, tail batch included: on CUDA whole epochs are run and timed one by one, after
// one that is not; on the CPU single steps are timed within a budget of seconds and scaled, which the label
// says. Wall time of Trainer::train() and evaluate(): gathering, normalising (augmentation only with
// --augment), the step, the loss on the host. A row exists only if its loss is finite and fell (training), or
// is finite and the same in every repetition over all the images (inference).
#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>

#include "harness/build_info.h"
#include "harness/common_options.h"
#include "harness/nvml.h"
#include "kernels/common/error.h"
#include "nn/trainer.h"

namespace kiln {
namespace {

using Clock = std::chrono::steady_clock;

constexpr long long kEpochImages = 50000;
constexpr int kCpuBatches = 4;        // images the CPU rows cycle through, in batches
constexpr size_t kFewestSamples = 3;  // of a median

struct Flags {
  CommonOptions common;
  std::vector<std::string> networks = {"small_cnn", "resnet18"}, precisions;
  int batch = 512;
  int epochs = 3;           // timed ones, CUDA
  double cpu_seconds = 60;  // a CPU row's budget
  bool augment = false;
};

// What a row measured. NaN where void.
struct Measurement {
  std::vector<double> seconds;  // of an epoch, one a sample
  double start_loss = std::numeric_limits<double>::quiet_NaN(), end_loss = start_loss;
  std::string note;   // for the label
  std::string error;  // why there is no row
};

double elapsed(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// Linear interpolation between the two nearest samples.
double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double position = q * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

TrainOptions train_options(const Flags& flags, const Device& device, DType precision) {
  TrainOptions o;
  o.precision = precision;
  o.impl = ImplChoice(flags.common.impl);
  o.batch = flags.batch;
  o.schedule = Schedule::kConstant;
  // Low enough for the loss to fall from the first steps on, which are all that a CPU row has.
  o.lr = device.is_cuda() ? 0.02f : 1e-3f;
  o.augment_pad = flags.augment ? 4 : 0;
  o.augment_flip = flags.augment;
  return o;
}

// All images of an epoch on CUDA, a few batches on the CPU. They are both the training and the test set.
DataPair bench_data(const Flags& flags, const Device& device) {
  CommonOptions wanted = flags.common;
  wanted.train_images = device.is_cuda() ? kEpochImages : 1LL * kCpuBatches * flags.batch;
  wanted.test_images = 1;
  DataPair data = load_images(wanted, stderr);
  data.test = data.train;
  return data;
}

std::string scaled_note(long long images, double seconds) {
  char text[96];
  std::snprintf(text, sizeof text, " scaled to 50,000 images from %lld in %.1f s", images, seconds);
  return text;
}

Measurement measure_train(const Flags& flags, const NetworkDescription& network, const DataPair& data,
                          const Device& device, DType precision) {
  Measurement m;
  TrainOptions options = train_options(flags, device, precision);
  const long long count = data.train.count();
  const long long epoch_steps = (count + flags.batch - 1) / flags.batch;
  // One sample: an epoch on CUDA, a step on the CPU. The first is the warm-up.
  const long long sample_steps = device.is_cuda() ? epoch_steps : 1;
  options.drain_every = static_cast<int>(sample_steps);
  options.epochs = device.is_cuda() ? 1 + flags.epochs : 1e6;

  Trainer trainer(network, data, device, options);
  std::vector<double> samples;
  long long last_step = 0;
  Clock::time_point mark = Clock::now(), timed_from = mark;
  trainer.train([&](const DrainRecord& record) {
    if (record.step < last_step + sample_steps) return true;
    const bool warm_up = last_step == 0;
    if (warm_up) {
      m.start_loss = record.step_losses.empty() ? record.loss : record.step_losses.front();
      timed_from = Clock::now();
    } else {
      samples.push_back(elapsed(mark));
    }
    m.end_loss = record.loss;
    last_step = record.step;
    mark = Clock::now();
    return device.is_cuda() || samples.size() < kFewestSamples || elapsed(timed_from) < flags.cpu_seconds;
  });

  const double per_sample = device.is_cuda() ? static_cast<double>(count) : flags.batch;
  for (const double s : samples) m.seconds.push_back(s * kEpochImages / per_sample);
  if (!device.is_cuda()) {
    m.note = scaled_note(flags.batch * static_cast<long long>(samples.size()), elapsed(timed_from));
  }
  if (!std::isfinite(m.start_loss) || !std::isfinite(m.end_loss) || !(m.end_loss < m.start_loss)) {
    m.error = "the loss did not fall: " + std::to_string(m.start_loss) + " -> " + std::to_string(m.end_loss);
  }
  return m;
}

Measurement measure_infer(const Flags& flags, const NetworkDescription& network, const DataPair& data,
                          const Device& device, DType precision) {
  Measurement m;
  Trainer trainer(network, data, device, train_options(flags, device, precision));
  const EvalResult first = trainer.evaluate();
  const Clock::time_point timed_from = Clock::now();
  const size_t most = device.is_cuda() ? static_cast<size_t>(flags.epochs) : 100;
  bool same = true;
  while (m.seconds.size() < kFewestSamples ||
         (m.seconds.size() < most && (device.is_cuda() || elapsed(timed_from) < flags.cpu_seconds / 2))) {
    const Clock::time_point start = Clock::now();
    const EvalResult result = trainer.evaluate();
    m.seconds.push_back(elapsed(start) * kEpochImages / static_cast<double>(result.images));
    same = same && result.loss == first.loss && result.correct == first.correct;
  }
  m.start_loss = m.end_loss = first.loss;
  if (!device.is_cuda()) {
    m.note = scaled_note(first.images * static_cast<long long>(m.seconds.size()), elapsed(timed_from));
  }
  if (!std::isfinite(first.loss)) m.error = "the loss is not finite";
  if (!same) m.error = "two evaluations of the same weights differ";
  if (first.images != data.test.count()) m.error = "not every image was evaluated";
  return m;
}

using Measure = Measurement (*)(const Flags&, const NetworkDescription&, const DataPair&, const Device&,
                                DType);

bool any_failed = false;

void run_row(benchmark::State& state, Measure measure, const Flags& flags, const std::string& network,
             const DataPair& data, const Device& device, DType precision) {
  Measurement m;
  try {
    m = measure(flags, load_network(network), data, device, precision);
  } catch (const std::exception& e) {
    m.error = e.what();
  }
  if (m.error.empty() && m.seconds.size() < kFewestSamples) m.error = "fewer than 3 timed samples";
  if (!m.error.empty()) {
    any_failed = true;
    state.SkipWithError(m.error.c_str());
    return;
  }
  const double median = quantile(m.seconds, 0.5);
  for (auto _ : state) state.SetIterationTime(median);
  state.counters["images_per_s"] = kEpochImages / median;
  state.counters["spread_pct"] = 50 * (quantile(m.seconds, 0.75) - quantile(m.seconds, 0.25)) / median;
  state.counters["start_loss"] = m.start_loss;
  state.counters["end_loss"] = m.end_loss;
  state.counters["samples"] = static_cast<double>(m.seconds.size());
  state.SetLabel(data.train.name + (flags.augment ? " augmented" : " not augmented") + m.note);
}

void add_flags(CLI::App& app, Flags& f) {
  app.add_option("--network", f.networks, "networks, comma-separated: built-in names or JSON files")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--device", f.common.device, "cpu or cuda (default: cuda where there is a GPU)");
  app.add_option("--precision", f.precisions,
                 "fp32, bf16 or both with a comma (default: bf16 on cuda, fp32 on cpu)")
      ->delimiter(',');
  app.add_option("--batch", f.batch, "images a step")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--data", f.common.data, "CIFAR-10 folder (default: the built-in set, 50,000 images)");
  app.add_option("--impl", f.common.impl, "implementations, as `kiln train` takes them");
  app.add_option("--epochs", f.epochs, "timed epochs a row on cuda, at least 3")
      ->check(CLI::Range(3, 1000))
      ->capture_default_str();
  app.add_option("--cpu-seconds", f.cpu_seconds, "budget of a training row on the cpu, inference has half")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", f.common.threads, "CPU threads")->check(CLI::PositiveNumber);
  app.add_flag("--augment", f.augment, "random crop (pad 4) and flip inside the timed step");
  app.footer("Google Benchmark's flags too: --benchmark_filter=REGEX, --benchmark_out=FILE.json, ...");
}

// Context of result files: which build, which machine.
void add_context(const Flags& flags, const Device& device) {
  const Nvml nvml(device.uuid);
  benchmark::AddCustomContext("schema", "1");
  benchmark::AddCustomContext("kiln_version", version());
  benchmark::AddCustomContext("commit", commit());
  benchmark::AddCustomContext("device", device.name);
  if (device.is_cuda()) {
    benchmark::AddCustomContext("uuid", device.uuid);
    benchmark::AddCustomContext("driver", nvml.driver_version());
  } else {
    benchmark::AddCustomContext("threads", std::to_string(device.threads));
  }
  if (!flags.common.impl.empty()) benchmark::AddCustomContext("impl", flags.common.impl);
}

void register_rows(const Flags& flags, const Device& device, const DataPair& data) {
  const std::string how = flags.common.impl.empty() ? "kiln" : "kiln[" + flags.common.impl + "]";
  const std::vector<std::pair<std::string, Measure>> kinds = {{"epoch_train", measure_train},
                                                              {"epoch_infer", measure_infer}};
  std::vector<std::string> precisions = flags.precisions;
  if (precisions.empty()) precisions = {""};
  for (const std::string& network : flags.networks) {
    const std::string name = load_network(network).name;
    for (const std::string& text : precisions) {
      const DType precision = select_precision(text, device);
      for (const auto& [kind, measure] : kinds) {
        const std::string row = kind + "/" + name + "/" + (device.is_cuda() ? "cuda" : "cpu") + "/" +
                                name_of(precision) + "/b" + std::to_string(flags.batch) + "/" + how;
        benchmark::RegisterBenchmark(row.c_str(), run_row, measure, flags, network, std::cref(data),
                                     std::cref(device), precision)
            ->Iterations(1)
            ->UseManualTime()
            ->Unit(benchmark::kSecond);
      }
    }
  }
}

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app("bench_epoch: seconds an epoch of training and inference, whole networks");
  add_flags(app, flags);
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    fail_usage(error.what());
  }
  std::vector<std::string> rest = app.remaining();
  rest.insert(rest.begin(), argv[0]);
  std::vector<char*> words;
  for (std::string& word : rest) words.push_back(word.data());
  int count = static_cast<int>(words.size());
  benchmark::Initialize(&count, words.data());
  if (benchmark::ReportUnrecognizedArguments(count, words.data())) return 2;

  const Device& device = select_device(flags.common, stderr);
  select_impl(flags.common, device, stderr);
  const DataPair data = bench_data(flags, device);
  add_context(flags, device);
  register_rows(flags, device, data);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return any_failed ? 1 : 0;
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  try {
    return kiln::run(argc, argv);
  } catch (const kiln::Error& error) {
    std::cerr << "bench_epoch: " << error.what() << "\n";
    return error.exit_status();
  } catch (const std::exception& error) {
    std::cerr << "bench_epoch: " << error.what() << "\n";
    return 1;
  }
}
