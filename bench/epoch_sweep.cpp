#include "bench/epoch_sweep.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "harness/progress.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kFewestCalls = 5, kFewestSteps = 3;
constexpr int kWarmCalls = 3;
constexpr int kCudaSteps = 20;  // of a sample: the host waits for the device only behind them

void summarize_steps(std::vector<double> samples, int batch, EpochResult* result) {
  std::sort(samples.begin(), samples.end());
  result->samples = samples.size();
  result->seconds = quantile_of_sorted(samples, 0.5);
  result->images_per_s = batch / result->seconds;
  result->spread_pct = spread_pct_of(samples);
}

double ratio(const RateByBatch& a, const RateByBatch& b, int batch) {
  return a.count(batch) && b.count(batch) ? a.at(batch) / b.at(batch) : EpochResult::kVoid;
}

std::string times(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*fx", value < 10 ? 2 : 0, value);
  return text;
}

std::string rate_text(const RateByBatch& rates, int batch) {
  return rates.count(batch) ? with_thousands(rates.at(batch)) : "-";
}

}  // namespace

EpochResult measure_sweep_infer(EpochBench& bench, const EpochRow& row) {
  const Dataset& data = bench.all_images().train;
  const size_t pixels = 1UL * data.height * data.width * data.channels;
  const long long places = data.count() / row.batch;
  if (places == 0) fail_usage("the data set has fewer images than the batch");
  InferenceSession session = bench.session(row, true);
  EpochResult result;
  bool finite = true;
  const auto call = [&](size_t i) {
    const long long first = static_cast<long long>(i) % places * row.batch;
    const Stopwatch sample;
    const std::vector<float> logits =
        session.predict(data.images.data() + static_cast<size_t>(first) * pixels, row.batch, row.batch);
    const double seconds = sample.seconds();
    finite = finite && std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); });
    return seconds;
  };
  for (size_t i = 0; i < kWarmCalls; ++i) call(i);
  std::vector<double> samples;
  const Stopwatch window;
  while (samples.size() < kFewestCalls || window.seconds() < bench.options().sweep_seconds) {
    samples.push_back(call(samples.size()));
  }
  summarize_steps(std::move(samples), row.batch, &result);
  result.note = ", folded, from and to host memory";
  if (!finite) result.error = "the logits are not finite";
  return result;
}

EpochResult measure_sweep_train(EpochBench& bench, const EpochRow& row) {
  const DataPair& all = bench.all_images();
  if (all.train.count() < row.batch) fail_usage("the data set has fewer images than the batch");
  TrainOptions options = bench.train_options(row);
  options.drain_every = row.device->is_cuda() ? kCudaSteps : 1;
  options.lr = 1e-3f;  // batches of one image must not diverge
  Trainer trainer(row.network, all, *row.device, options);
  EpochResult result;
  std::vector<double> samples;
  bool warm = false;
  Stopwatch step, window;
  trainer.train([&](const DrainRecord& record) {
    const double seconds = step.seconds() / static_cast<double>(record.step_losses.size());
    if (warm) samples.push_back(seconds);
    if (!warm) window.restart();
    warm = true;
    if (std::isnan(result.start_loss)) result.start_loss = record.loss;
    result.end_loss = record.loss;
    if (!std::isfinite(record.loss) || record.skipped_updates > 0) result.error = "the loss is not finite";
    step.restart();
    return samples.size() < kFewestSteps || window.seconds() < bench.options().sweep_seconds;
  });
  summarize_steps(std::move(samples), row.batch, &result);
  return result;
}

std::string crossover_text(const RateByBatch& cpu, const RateByBatch& cuda, const std::string& without) {
  std::vector<int> batches;
  for (const auto& [batch, rate] : cpu) {
    if (cuda.count(batch)) batches.push_back(batch);
  }
  if (batches.empty()) return "unknown: " + (without.empty() ? "no batch was measured on both" : without);
  size_t first = batches.size();  // the first from which on cuda is faster
  while (first > 0 && cuda.at(batches[first - 1]) > cpu.at(batches[first - 1])) --first;
  if (first == batches.size()) {
    return "none: at batch " + std::to_string(batches.back()) + ", the largest, the cpu is faster";
  }
  const std::string best =
      ", " + times(ratio(cuda, cpu, batches.back())) + " at batch " + std::to_string(batches.back());
  if (first == 0) {
    return "none: cuda is faster at every batch, " + times(ratio(cuda, cpu, batches.front())) + " at batch " +
           std::to_string(batches.front()) + best;
  }
  return "cuda is faster from batch " + std::to_string(batches[first]) + " on (" +
         times(ratio(cuda, cpu, batches[first])) + best + "), the cpu at batch " +
         std::to_string(batches[first - 1]) + " (" + times(1 / ratio(cuda, cpu, batches[first - 1])) + ")";
}

void print_sweep(std::FILE* out, const std::map<std::string, std::pair<EpochRow, EpochResult>>& results) {
  struct Rates {
    RateByBatch cpu, cuda;
    std::set<int> batches;
  };
  std::map<std::string, Rates> kinds;  // by "network, inference"
  for (const auto& [name, entry] : results) {
    const auto& [row, result] = entry;
    if (!result.error.empty()) continue;
    Rates& rates = kinds[row.network.name + (row.kind == "sweep_infer" ? ", inference" : ", training step")];
    const bool cuda = row.device->is_cuda();
    // Of several precisions the faster one.
    double& rate = (cuda ? rates.cuda : rates.cpu)[row.batch];
    rate = std::max(rate, result.images_per_s);
    rates.batches.insert(row.batch);
  }
  const std::string without =
      cuda_available() ? "" : "no CUDA device here (" + cuda_unavailable_reason() + ")";
  for (const auto& [what, rates] : kinds) {
    std::fprintf(out, "\n%s, images/s\n%8s %14s %14s %10s\n", what.c_str(), "batch", "cpu", "cuda",
                 "cuda/cpu");
    for (const int batch : rates.batches) {
      const double x = ratio(rates.cuda, rates.cpu, batch);
      std::fprintf(out, "%8d %14s %14s %10s\n", batch, rate_text(rates.cpu, batch).c_str(),
                   rate_text(rates.cuda, batch).c_str(), std::isnan(x) ? "-" : times(x).c_str());
    }
    std::fprintf(out, "crossover: %s: %s\n", what.c_str(),
                 crossover_text(rates.cpu, rates.cuda, without).c_str());
  }
}

}  // namespace kiln
