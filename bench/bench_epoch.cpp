// Whole networks: `epoch_train/<network>/<device>/<precision>/b<batch>/<implementation>` and `epoch_infer`
// (seconds an epoch of 50,000 images), `predict` (the same from host memory to host memory, batchnorm
// folded), `latency_b1` (one image), and with --sweep `sweep_infer` and `sweep_train` (a step at every batch
// size). docs/measuring.md says what each includes. A row exists only if its loss is finite and fell
// (training), if repetitions agree to the bit (evaluation, predict), if folded and plain logits agree
// (predict).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "bench/epoch_measure.h"
#include "bench/epoch_sweep.h"
#include "harness/build_info.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

using Measure = EpochResult (*)(EpochBench&, const EpochRow&);

// What the rows share while Google Benchmark runs them.
struct Rows {
  explicit Rows(const EpochOptions& options) : bench(options) {}
  EpochBench bench;
  std::map<std::string, std::pair<EpochRow, EpochResult>> results;  // of a sweep
  bool any_failed = false;
};

std::string label_of(const EpochRow& row, const EpochResult& r, EpochBench& bench) {
  std::string label = bench.all_images().train.name;
  if (row.kind == "epoch_train" || row.kind == "sweep_train") {
    label += bench.options().augment ? ", augmented" : ", not augmented";
  }
  return label + r.note + (r.gpu.slowdown.empty() ? "" : " [clocks: " + r.gpu.slowdown + "]");
}

void set_counters(benchmark::State& state, const EpochResult& r) {
  const std::pair<const char*, double> counters[] = {{"images_per_s", r.images_per_s},
                                                     {"spread_pct", r.spread_pct},
                                                     {"samples", static_cast<double>(r.samples)},
                                                     {"start_loss", r.start_loss},
                                                     {"end_loss", r.end_loss},
                                                     {"p50_us", r.p50_us},
                                                     {"p90_us", r.p90_us},
                                                     {"p99_us", r.p99_us},
                                                     {"max_us", r.max_us},
                                                     {"joule_per_image", r.joule_per_image},
                                                     {"power_w", r.gpu.power_w},
                                                     {"idle_power_w", r.gpu.idle_w},
                                                     {"gpu_utilization_pct", r.gpu.utilization_pct},
                                                     {"sm_mhz", r.gpu.sm_mhz}};
  for (const auto& [name, value] : counters) state.counters[name] = value;
}

void run_row(benchmark::State& state, Rows& rows, Measure measure, const EpochRow& row,
             const std::string& name) {
  EpochResult r;
  try {
    r = measure(rows.bench, row);
  } catch (const std::exception& e) {
    r.error = e.what();
  }
  if (r.error.empty() && !(r.seconds > 0)) r.error = "no time was measured";
  if (rows.bench.options().sweep.size()) rows.results.insert({name, {row, r}});
  if (!r.error.empty()) {
    rows.any_failed = true;
    state.SkipWithError(r.error.c_str());
    return;
  }
  for (auto _ : state) state.SetIterationTime(r.seconds);
  set_counters(state, r);
  state.SetLabel(label_of(row, r, rows.bench));
}

void register_row(Rows& rows, Measure measure, const EpochRow& row, benchmark::TimeUnit unit) {
  const std::string& impl = rows.bench.options().common.impl;
  const std::string name = row.name(impl.empty() ? "kiln" : "kiln[" + impl + "]");
  benchmark::RegisterBenchmark(
      name.c_str(),
      [&rows, measure, row, name](benchmark::State& state) { run_row(state, rows, measure, row, name); })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(unit);
}

std::vector<DType> precisions_for(const EpochOptions& o, const Device& device) {
  std::vector<DType> precisions;
  for (const std::string& name : o.precisions) precisions.push_back(select_precision(name, device));
  if (precisions.empty()) precisions.push_back(select_precision("", device));
  return precisions;
}

void register_epochs(Rows& rows, const EpochOptions& o, const Device& device) {
  for (const std::string& model : o.networks) {
    const NetworkDescription network = load_network(model);
    for (const DType precision : precisions_for(o, device)) {
      const auto add = [&](const char* kind, Measure measure, int batch, benchmark::TimeUnit unit) {
        register_row(rows, measure, {kind, network, &device, precision, batch}, unit);
      };
      for (const int batch : batches_for(o, device)) {
        add("epoch_train", measure_train, batch, benchmark::kSecond);
        add("epoch_infer", measure_infer, batch, benchmark::kSecond);
        add("predict", measure_predict, batch, benchmark::kSecond);
      }
      add("latency_b1", measure_latency, 1, benchmark::kMicrosecond);
    }
  }
}

// --cpu-full names networks that there are; '' is none.
void check_cpu_full(const EpochOptions& o) {
  std::vector<std::string> known = builtin_network_names();
  for (const std::string& model : o.networks) {
    const std::string name = load_network(model).name;
    if (std::find(known.begin(), known.end(), name) == known.end()) known.push_back(name);
  }
  for (const std::string& name : o.cpu_full) {
    if (name.empty() || std::find(known.begin(), known.end(), name) != known.end()) continue;
    fail_usage("--cpu-full: " + unknown_name_message("network", name, known));
  }
}

void register_sweep(Rows& rows, const EpochOptions& o, const std::vector<const Device*>& devices) {
  for (const std::string& model : o.sweep) {
    const NetworkDescription network = load_network(model);
    for (const Device* device : devices) {
      EpochOptions its = o;  // the CPU has fp32 alone
      if (!device->is_cuda()) its.precisions.clear();
      for (const DType precision : precisions_for(its, *device)) {
        for (const int batch : sweep_batches(o)) {
          register_row(rows, measure_sweep_infer, {"sweep_infer", network, device, precision, batch},
                       benchmark::kMicrosecond);
          register_row(rows, measure_sweep_train, {"sweep_train", network, device, precision, batch},
                       benchmark::kMicrosecond);
        }
      }
    }
  }
}

// Context of result files: which build, which machine, which images.
void add_context(const EpochOptions& o, const std::vector<const Device*>& devices) {
  benchmark::AddCustomContext("schema", "1");
  benchmark::AddCustomContext("kiln_version", version());
  benchmark::AddCustomContext("commit", commit());
  for (const Device* device : devices) {
    if (device == devices.back()) benchmark::AddCustomContext("device", device->name);
    if (device->is_cuda()) {
      const Nvml nvml(device->uuid);
      benchmark::AddCustomContext("uuid", device->uuid);
      benchmark::AddCustomContext("driver", nvml.driver_version());
      if (const auto limit = nvml.power_limit_w()) {
        benchmark::AddCustomContext("power_limit_w", std::to_string(std::lround(*limit)));
      }
    } else {
      benchmark::AddCustomContext("cpu", device->name);
      benchmark::AddCustomContext("threads", std::to_string(device->threads));
    }
  }
  benchmark::AddCustomContext("data", o.common.data.empty() ? "builtin" : o.common.data);
  benchmark::AddCustomContext("augment", o.augment ? "crop 4, flip" : "none");
  if (!o.common.impl.empty()) benchmark::AddCustomContext("impl", o.common.impl);
}

int run(int argc, char** argv) {
  const EpochOptions options = parse_epoch_options(&argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;

  const Device& chosen = select_device(options.common, stderr);
  const ImplChoice checked(options.common.impl);  // a name that is wrong ends here, not in every row
  std::vector<const Device*> devices = {&chosen};
  if (!options.sweep.empty() && options.common.device.empty() && chosen.is_cuda()) {
    devices.insert(devices.begin(), &cpu_device());
  }
  Rows rows(options);
  if (!options.common.data.empty()) rows.bench.all_images();  // so do data that cannot be read
  check_cpu_full(options);
  if (options.sweep.empty()) {
    register_epochs(rows, options, chosen);
  } else {
    register_sweep(rows, options, devices);
  }
  add_context(options, devices);
  // None: --benchmark_filter names no row, as has been said.
  const bool none = benchmark::RunSpecifiedBenchmarks() == 0;
  benchmark::Shutdown();
  if (!rows.results.empty()) print_sweep(options.table_to_stderr ? stderr : stdout, rows.results);
  return none ? 2 : rows.any_failed ? 1 : 0;
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
