// Times single passes: see kLayerHelp in layer_options.cpp.
#include <benchmark/benchmark.h>
#ifdef KILN_WITH_CUDNN
#include <cudnn.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "bench/layer_rows.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

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
  std::snprintf(digits, sizeof digits, "%.1f", value);
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
  benchmark::AddCustomContext("sm_mhz", text(ceilings.sm_mhz));
  benchmark::AddCustomContext("dram_gbps", text(ceilings.dram_gbps));
  benchmark::AddCustomContext("copy_gbps", text(ceilings.copy_gbps));
  benchmark::AddCustomContext("read_gbps", text(ceilings.read_gbps));
  benchmark::AddCustomContext("write_gbps", text(ceilings.write_gbps));
  benchmark::AddCustomContext("matmul_bf16_tflops", text(ceilings.matmul_bf16_tflops));
}

bool any_failed = false;

void run_row(benchmark::State& state, LayerBench& bench, const LayerRow& row) {
  LayerCounters c;
  try {
    c = bench.measure(row);
  } catch (const std::exception& error) {
    any_failed = any_failed || !row.peer;  // a peer that fails its gate has no row, which is its own matter
    state.SkipWithError(error.what());
    return;
  }
  for (auto _ : state) state.SetIterationTime(c.cold_us * 1e-6);
  state.SetLabel(row.label);
  state.counters["cold_us"] = c.cold_us;
  state.counters["warm_us"] = c.warm_us;
  state.counters["spread_pct"] = c.spread_pct;
  state.counters["gbps"] = c.gbps;
  state.counters["tflops"] = c.tflops;
  state.counters["pct_ceiling"] = c.pct_ceiling;
  state.counters["x_vendor_best"] = c.x_vendor_best;
  state.counters["x_vendor_default"] = c.x_vendor_default;
  state.counters["x_naive"] = c.x_naive;
}

int run(int argc, char** argv) {
  const LayerOptions options = parse_layer_options(argc, argv);
  if (options.help) std::fputs(kLayerHelp, stdout);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Device& device = !options.device.empty() ? device_from_name(options.device)
                         : cuda_available()      ? cuda_device()
                                                 : cpu_device();
  for (const std::string& id : options.impl.skipped(device.kind)) {
    std::fprintf(stderr, "skipped: %s has no such implementation on %s\n", id.c_str(), device.name.c_str());
  }
  const std::vector<LayerRow> rows = layer_rows(options, device);
  const Ceilings ceilings = measure_ceilings(device);
  add_context(device, ceilings);
  LayerBench bench(device, ceilings);
  for (const LayerRow& row : rows) {
    benchmark::RegisterBenchmark(row.name().c_str(),
                                 [&](benchmark::State& state) { run_row(state, bench, row); })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
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
    std::fprintf(stderr, "bench_layers: %s\n", error.what());
    return error.exit_status();
  }
}
