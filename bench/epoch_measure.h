// What bench_epoch measures of one network: training, evaluation, predictions, latency.
#pragma once

#include <chrono>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "bench/epoch_options.h"
#include "bench/gpu_meter.h"
#include "nn/inference.h"
#include "nn/trainer.h"

namespace kiln {

constexpr long long kEpochImages = 50000;

struct EpochRow {
  std::string kind;  // "epoch_train", ...
  NetworkDescription network;
  const Device* device;
  DType precision;
  int batch;
  std::string name(const std::string& impl) const;  // the row's: "epoch_train/resnet18/cuda/bf16/b512/kiln"
};

// What a row measured. NaN where void.
struct EpochResult {
  static constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();
  double seconds = kVoid;  // of 50,000 images; of one image (latency); of one step (sweep)
  double images_per_s = kVoid, spread_pct = kVoid;
  size_t samples = 0;
  double start_loss = kVoid, end_loss = kVoid;
  double p50_us = kVoid, p90_us = kVoid, p99_us = kVoid, max_us = kVoid;
  GpuUse gpu;
  double joule_per_image = kVoid;
  std::string note;   // for the label
  std::string error;  // why there is no row
};

// Linear interpolation between the two nearest of sorted values.
double quantile_of_sorted(const std::vector<double>& sorted, double q);
// Half the interquartile range in percent of the median; NaN for fewer than 3 samples.
double spread_pct_of(std::vector<double> samples);

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  double restart() {
    const double past = seconds();
    start_ = Clock::now();
    return past;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// Images, trained weights and the GPU's meter, made when they are first needed, for all rows.
class EpochBench {
 public:
  explicit EpochBench(const EpochOptions& options) : options_(options) {}
  ~EpochBench();
  EpochBench(const EpochBench&) = delete;
  EpochBench& operator=(const EpochBench&) = delete;

  const EpochOptions& options() const { return options_; }
  // All 50,000 images, or of a CPU row that is not run in full one batch.
  bool in_full(const EpochRow& row) const;
  const DataPair& training_data(const EpochRow& row);    // no test images
  const DataPair& evaluation_data(const EpochRow& row);  // as test images; a few for training
  const DataPair& all_images();                          // for training, no test images
  // A file of the network's weights after some steps of training on the device, so that what is measured
  // computes with values as a trained network has them.
  const std::string& weights(const EpochRow& row);
  GpuMeter& meter(const Device& device);
  bool wants_energy(const EpochRow& row) const;
  const ImplChoice& impl(const Device& device);
  TrainOptions train_options(const EpochRow& row);
  InferenceSession session(const EpochRow& row, bool fold);

 private:
  EpochOptions options_;
  DataPair all_;
  std::map<std::pair<long long, bool>, DataPair> cut_;  // by count; for evaluation or not
  std::map<std::string, std::string> weights_;
  std::map<const Device*, ImplChoice> impls_;
  std::map<const Device*, std::unique_ptr<GpuMeter>> meters_;
  std::string folder_;  // temporary, of the weights
};

EpochResult measure_train(EpochBench& bench, const EpochRow& row);
EpochResult measure_infer(EpochBench& bench, const EpochRow& row);
EpochResult measure_predict(EpochBench& bench, const EpochRow& row);
EpochResult measure_latency(EpochBench& bench, const EpochRow& row);

// Of a row whose samples are seconds of 50,000 images.
void summarize_epochs(const std::vector<double>& samples, EpochResult* result);
// Ends the meter's window, in which `images` were computed.
void take_gpu_use(GpuMeter& meter, long long images, EpochResult* result);
// " scaled to 50,000 images from 2,048 in 61.2 s"
std::string scaled_note(long long images, double seconds);

}  // namespace kiln
