// Times single passes: see layer_options.cpp for the flags, docs/measuring.md for what is measured.
#include <benchmark/benchmark.h>
#ifdef KILN_WITH_CUDNN
#include <cudnn.h>
#endif

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bench/layer_rows.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr double kCpuSeconds = 0.3;  // of a row on a CPU, whose threads disturb each other

std::string first_line(const std::string& command) {
  std::string line;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char text[256];
    if (std::fgets(text, sizeof text, pipe)) line = text;
    pclose(pipe);
  }
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return line;
}

std::string commit() {
  if (const char* set = std::getenv("KILN_COMMIT")) return set;
  const std::string git = "git -C '" KILN_SOURCE_DIR "' ";
  const std::string head = first_line(git + "rev-parse HEAD 2>/dev/null");
  const bool dirty =
      !head.empty() && !first_line(git + "status --porcelain --untracked-files=no 2>/dev/null").empty();
  return head + (dirty ? "-dirty" : "");
}

std::string text(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.*f", value < 10 ? 2 : 1, value);
  return digits;
}

// What a result file must say about the machine and the binary.
void add_context(const Device& device, const Ceilings& ceilings) {
  benchmark::AddCustomContext("schema", "1");
  benchmark::AddCustomContext("kiln_version", KILN_VERSION);
  benchmark::AddCustomContext("commit", commit());
  benchmark::AddCustomContext("device", device.name);
  if (!device.is_cuda()) {
    benchmark::AddCustomContext("threads", std::to_string(device.threads));
    benchmark::AddCustomContext("isa", device.isa);
    return;
  }
  std::string driver;
  std::getline(std::ifstream("/sys/module/nvidia/version") >> std::ws, driver);
  benchmark::AddCustomContext("driver", driver);
  benchmark::AddCustomContext("uuid", device.uuid);
#ifdef KILN_WITH_CUDNN
  benchmark::AddCustomContext("cudnn", std::to_string(cudnnGetVersion()));
#endif
  if (const auto watts = Nvml(device.uuid).power_limit_w()) {
    benchmark::AddCustomContext("power_limit_w", text(*watts));
  }
  std::fprintf(stderr, "%-20s %12s %12s\n", "ceiling", "measured", "specified");
  for (const Ceilings::Line& line : ceilings.lines(device)) {
    const double value = std::isnan(line.measured) ? line.specified : line.measured;
    benchmark::AddCustomContext(line.name, text(value));
    std::fprintf(stderr, "%-20s %12s %12s\n", line.name.c_str(), text(line.measured).c_str(),
                 text(line.specified).c_str());
  }
}

// Rows by problem: a problem is measured when its first row is asked for.
class Rows {
 public:
  Rows(std::vector<LayerRow> rows, LayerBench& bench) : bench_(bench) {
    for (LayerRow& row : rows) {
      const std::string group = row.group();
      groups_[group].rows.push_back(std::move(row));
    }
  }
  const RowResult& result(const LayerRow& row) {
    Group& group = groups_.at(row.group());
    if (group.results.empty()) {
      group.results = bench_.measure(group.rows);
      report(row.group(), group.rows.size());
    }
    for (size_t i = 0; i < group.rows.size(); ++i) {
      if (group.rows[i].impl == row.impl) return group.results[i];
    }
    fail_failure("no such row: " + row.name());
  }

 private:
  struct Group {
    std::vector<LayerRow> rows;
    std::vector<RowResult> results;
  };
  // A line a problem: where the time went, and how much is left if the others take as long.
  void report(const std::string& group, size_t rows) {
    ++done_;
    const MeasureCost& cost = bench_.last_cost();
    spent_ += cost.sum();
    const double left = spent_ / static_cast<double>(done_) * static_cast<double>(groups_.size() - done_);
    std::fprintf(
        stderr, "[%zu/%zu] %s: %zu rows; judge %.1f, prepare %.1f, gate %.1f, timing %.1f s; %.0f s left\n",
        done_, groups_.size(), group.c_str(), rows, cost.judge, cost.prepare, cost.gate, cost.time, left);
  }

  LayerBench& bench_;
  std::map<std::string, Group> groups_;
  size_t done_ = 0;
  double spent_ = 0;
};

bool any_failed = false;

void run_row(benchmark::State& state, Rows& rows, const LayerRow& row) {
  const RowResult& result = rows.result(row);
  if (!result.error.empty()) {
    any_failed = any_failed || !row.peer;  // a peer that fails its gate has no row, which is its own matter
    state.SkipWithError(result.error.c_str());
    return;
  }
  const LayerCounters& c = result.counters;
  for (auto _ : state) state.SetIterationTime(c.cold_us * 1e-6);
  state.SetLabel(row.label + (result.note.empty() ? "" : " [clocks: " + result.note + "]"));
  const std::pair<const char*, double> counters[] = {{"cold_us", c.cold_us},
                                                     {"warm_us", c.warm_us},
                                                     {"spread_pct", c.spread_pct},
                                                     {"gbps", c.gbps},
                                                     {"tflops", c.tflops},
                                                     {"pct_ceiling", c.pct_ceiling},
                                                     {"pct_copy", c.pct_copy},
                                                     {"x_vendor_best", c.x_vendor_best},
                                                     {"x_vendor_default", c.x_vendor_default},
                                                     {"x_naive", c.x_naive},
                                                     {"pick_ratio", c.pick_ratio},
                                                     {"workspace_bytes", c.workspace_bytes},
                                                     {"sm_mhz", c.sm_mhz},
                                                     {"samples", c.samples}};
  for (const auto& [name, value] : counters) state.counters[name] = value;
}

// Large blocks go back to the system when freed, and come back page by page: keep them instead.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

int run(int argc, char** argv) {
  keep_freed_memory();
  const LayerOptions options = parse_layer_options(argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Device& device = !options.device.empty() ? device_from_name(options.device)
                         : cuda_available()      ? cuda_device()
                                                 : cpu_device();
  for (const std::string& id : options.impl.skipped(device.kind)) {
    std::fprintf(stderr, "skipped: %s has no such implementation on %s\n", id.c_str(), device.name.c_str());
  }
  PlanRanking ranking(options.cudnn_plans);
  const std::vector<LayerRow> rows = layer_rows(options, device, ranking);
  if (rows.empty() && options.filter == "." && options.shards == 1) {
    fail_usage(device.name +
               " has no implementation of these problems in the dtype or by the names asked for" +
               (device.is_cuda() ? "" : "; on a CPU the dtype is fp32"));
  }
  const Ceilings ceilings = options.profile ? Ceilings{} : measure_ceilings(device);
  add_context(device, ceilings);
  TimingOptions timing = options.timing;
  if (!device.is_cuda()) timing.most_seconds = kCpuSeconds;
  if (options.max_seconds > 0) timing.most_seconds = options.max_seconds;
  LayerBench bench(device, ceilings, timing);
  if (options.profile) bench.profile_only();
  Rows measured(rows, bench);
  for (const LayerRow& row : rows) {
    benchmark::RegisterBenchmark(row.name().c_str(),
                                 [&](benchmark::State& state) { run_row(state, measured, row); })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  // None: --benchmark_filter names no row, as has been said; a shard may have none of those it names.
  const bool none = benchmark::RunSpecifiedBenchmarks() == 0 && options.shards == 1;
  benchmark::Shutdown();
  return none ? 2 : any_failed ? 1 : 0;
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  try {
    return kiln::run(argc, argv);
  } catch (const kiln::Error& error) {
    std::fprintf(stderr, "bench_layers: %s\n", error.what());
    return error.exit_status();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_layers: %s\n", error.what());
    return 1;
  }
}
