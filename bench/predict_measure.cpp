// Throughput and latency of InferenceSession with batchnorm folded: from images in host memory to logits in
// host memory, copies included, one call after the other.
#include <algorithm>
#include <cmath>

#include "bench/epoch_measure.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kFewestPasses = 3;
constexpr size_t kFewestCallsCuda = 1000, kFewestCallsCpu = 200;
constexpr double kCpuLatencySeconds = 3;
constexpr int kWarmCalls = 20;
constexpr long long kLatencyImages = 256;  // that the calls cycle through
constexpr int kChecked = 16;               // of which so many are checked
constexpr long long kCompared = 64;        // images whose folded and plain logits are compared, at most

double relative_distance(const std::vector<float>& got, const std::vector<float>& wanted) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - wanted[i];
    difference += d * d;
    norm += static_cast<double>(wanted[i]) * wanted[i];
  }
  return std::sqrt(difference / norm);
}

// "" or how `got` differs from `wanted` by more than roundings: those of bf16 add up over a network's layers,
// a wrong fold is off by about 1.
std::string disagreement(const std::vector<float>& got, const std::vector<float>& wanted, DType precision,
                         const char* what) {
  const double bound = precision == DType::kBF16 ? 0.15 : 1e-3, distance = relative_distance(got, wanted);
  return distance <= bound ? ""
                           : std::string(what) + " differ by " + std::to_string(distance) + " of their norm";
}

}  // namespace

EpochResult measure_predict(EpochBench& bench, const EpochRow& row) {
  const Dataset& data = bench.evaluation_data(row).test;
  if (data.count() < row.batch) fail_usage("the data set has fewer images than the batch");
  const bool cuda = row.device->is_cuda();
  const double budget = cuda ? bench.options().seconds : bench.options().cpu_seconds / 6;
  const size_t fewest = !cuda && bench.in_full(row) ? 1 : kFewestPasses;
  InferenceSession session = bench.session(row, true);
  GpuMeter& meter = bench.meter(*row.device);

  EpochResult result;
  const long long checked = std::min<long long>(row.batch, kCompared);
  result.error = disagreement(session.predict(data.images.data(), checked, row.batch),
                              bench.session(row, false).predict(data.images.data(), checked, row.batch),
                              row.precision, "logits of the folded and the plain network");
  if (!result.error.empty()) return result;
  const std::vector<float> first = session.predict(data.images.data(), data.count(), row.batch);
  bool same = true;
  const auto pass = [&] {
    const Stopwatch watch;
    const std::vector<float> logits = session.predict(data.images.data(), data.count(), row.batch);
    const double seconds = watch.seconds();
    same = same && logits == first;
    return seconds;
  };
  if (cuda) pass();  // the second run records what later ones replay
  std::vector<double> samples;
  meter.start(bench.wants_energy(row));
  const Stopwatch window;
  do {
    samples.push_back(pass() * kEpochImages / static_cast<double>(data.count()));
    meter.look();
  } while (samples.size() < fewest || window.seconds() < budget || !meter.long_enough());
  const long long images = data.count() * static_cast<long long>(samples.size());
  take_gpu_use(meter, images, &result);
  summarize_epochs(samples, &result);
  result.note = ", folded, from and to host memory";
  if (data.count() != kEpochImages) result.note += scaled_note(images, window.seconds());
  if (!same) result.error = "two predictions of the same images differ";
  return result;
}

EpochResult measure_latency(EpochBench& bench, const EpochRow& row) {
  const Dataset& data = bench.all_images().train;
  const size_t pixels = 1UL * data.height * data.width * data.channels;
  const long long images = std::min(kLatencyImages, data.count());
  const bool cuda = row.device->is_cuda();
  const size_t fewest = cuda ? kFewestCallsCuda : kFewestCallsCpu;
  const double budget = cuda ? bench.options().seconds : kCpuLatencySeconds;
  InferenceSession session = bench.session(row, true);
  GpuMeter& meter = bench.meter(*row.device);

  EpochResult result;
  const int checked = static_cast<int>(std::min<long long>(kChecked, images));
  result.error = disagreement(session.predict(data.images.data(), checked, 1),
                              session.predict(data.images.data(), checked, checked), row.precision,
                              "logits at batch 1 and of all images at once");
  if (!result.error.empty()) return result;
  for (int i = 0; i < kWarmCalls; ++i) session.predict(data.images.data(), 1, 1);
  std::vector<double> samples;
  meter.start(bench.wants_energy(row));
  const Stopwatch window;
  do {
    const uint8_t* image = data.images.data() + samples.size() % static_cast<size_t>(images) * pixels;
    const Stopwatch sample;
    session.predict(image, 1, 1);
    samples.push_back(sample.seconds());
    meter.look();
  } while (samples.size() < fewest || window.seconds() < budget || !meter.long_enough());
  take_gpu_use(meter, static_cast<long long>(samples.size()), &result);
  std::sort(samples.begin(), samples.end());
  result.samples = samples.size();
  result.seconds = quantile_of_sorted(samples, 0.5);
  result.images_per_s = 1 / result.seconds;
  result.spread_pct = spread_pct_of(samples);
  result.p50_us = 1e6 * result.seconds;
  result.p90_us = 1e6 * quantile_of_sorted(samples, 0.9);
  result.p99_us = 1e6 * quantile_of_sorted(samples, 0.99);
  result.max_us = 1e6 * samples.back();
  result.note = ", folded, a call from and to host memory";
  return result;
}

}  // namespace kiln
