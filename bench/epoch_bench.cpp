// EpochBench: what the rows share; and the arithmetic of their figures.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "bench/epoch_measure.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr long long kFewImages = 8;  // of training, where only evaluation counts
constexpr long long kSweepImages = 8192;
constexpr int kEnergyBatch = 512;
constexpr int kWarmStepsCuda = 100, kWarmBatchCuda = 512, kWarmStepsCpu = 8, kWarmBatchCpu = 64;

Dataset first_images(const Dataset& all, long long count) {
  Dataset part;
  part.name = all.name;
  part.height = all.height;
  part.width = all.width;
  part.channels = all.channels;
  part.classes = all.classes;
  count = std::min(count, all.count());
  const long long pixels = 1LL * all.height * all.width * all.channels;
  part.images.assign(all.images.begin(), all.images.begin() + count * pixels);
  part.labels.assign(all.labels.begin(), all.labels.begin() + count);
  return part;
}

}  // namespace

std::string EpochRow::name(const std::string& impl) const {
  return kind + "/" + network.name + "/" + (device->is_cuda() ? "cuda" : "cpu") + "/" + name_of(precision) +
         "/b" + std::to_string(batch) + "/" + impl;
}

double quantile_of_sorted(const std::vector<double>& sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

double spread_pct_of(std::vector<double> samples) {
  if (samples.size() < 3) return EpochResult::kVoid;
  std::sort(samples.begin(), samples.end());
  const double range = quantile_of_sorted(samples, 0.75) - quantile_of_sorted(samples, 0.25);
  return 50 * range / quantile_of_sorted(samples, 0.5);
}

void summarize_epochs(const std::vector<double>& samples, EpochResult* result) {
  result->samples = samples.size();
  if (samples.empty()) return;
  std::vector<double> sorted = samples;
  std::sort(sorted.begin(), sorted.end());
  result->seconds = quantile_of_sorted(sorted, 0.5);
  result->images_per_s = kEpochImages / result->seconds;
  result->spread_pct = spread_pct_of(sorted);
}

void take_gpu_use(GpuMeter& meter, long long images, EpochResult* result) {
  result->gpu = meter.stop();
  result->joule_per_image = result->gpu.joules / static_cast<double>(images);
}

std::string scaled_note(long long images, double seconds) {
  char text[96];
  std::snprintf(text, sizeof text, ", scaled to 50,000 images from %lld in %.1f s", images, seconds);
  return text;
}

EpochBench::~EpochBench() {
  std::error_code ignored;
  if (!folder_.empty()) fs::remove_all(folder_, ignored);
}

bool EpochBench::in_full(const EpochRow& row) const {
  const std::vector<std::string>& full = options_.cpu_full;
  return row.device->is_cuda() || std::find(full.begin(), full.end(), row.network.name) != full.end();
}

const DataPair& EpochBench::all_images() {
  if (all_.train.count() == 0) {
    CommonOptions wanted = options_.common;
    wanted.train_images = kEpochImages;
    if (!options_.sweep.empty()) {
      const std::vector<int> batches = sweep_batches(options_);
      wanted.train_images =
          std::max<long long>(kSweepImages, *std::max_element(batches.begin(), batches.end()));
    }
    wanted.test_images = 1;
    all_ = load_images(wanted, stderr);
    all_.test = Dataset();
  }
  return all_;
}

const DataPair& EpochBench::training_data(const EpochRow& row) {
  if (in_full(row)) return all_images();
  DataPair& cut = cut_[{row.batch, false}];
  if (cut.train.count() == 0) {
    cut = all_images();
    cut.train = first_images(all_images().train, row.batch);
  }
  return cut;
}

const DataPair& EpochBench::evaluation_data(const EpochRow& row) {
  const long long count = in_full(row) ? kEpochImages : row.batch;
  DataPair& cut = cut_[{count, true}];
  if (cut.test.count() == 0) {
    cut.mean = all_images().mean;
    cut.std = all_images().std;
    cut.class_names = all_images().class_names;
    cut.train = first_images(all_images().train, kFewImages);
    cut.test = first_images(all_images().train, count);
  }
  return cut;
}

const ImplChoice& EpochBench::impl(const Device& device) {
  const auto found = impls_.find(&device);
  if (found != impls_.end()) return found->second;
  return impls_.emplace(&device, select_impl(options_.common, device, stderr)).first->second;
}

TrainOptions EpochBench::train_options(const EpochRow& row) {
  TrainOptions o;
  o.precision = row.precision;
  o.impl = impl(*row.device);
  o.batch = row.batch;
  o.schedule = Schedule::kConstant;
  o.epochs = 1e6;                                 // a measurement ends it
  o.lr = row.device->is_cuda() ? 0.02f : 0.005f;  // low enough for the loss to fall from the first steps on
  o.augment_pad = options_.augment ? 4 : 0;
  o.augment_flip = options_.augment ? Flip::kRandom : Flip::kNone;
  return o;
}

const std::string& EpochBench::weights(const EpochRow& row) {
  const bool cuda = row.device->is_cuda();
  std::string& file = weights_[row.network.name + (cuda ? "-cuda-" : "-cpu-") + name_of(row.precision)];
  if (!file.empty()) return file;
  if (folder_.empty()) {
    std::string made = (fs::temp_directory_path() / "bench_epoch.XXXXXX").string();
    if (!mkdtemp(made.data())) fail_failure("no temporary folder can be made in " + made);
    folder_ = made;
  }
  EpochRow warm = row;
  warm.batch = cuda ? kWarmBatchCuda : kWarmBatchCpu;
  TrainOptions o = train_options(warm);
  o.max_steps = cuda ? kWarmStepsCuda : kWarmStepsCpu;
  Trainer trainer(row.network, training_data(warm), *row.device, o);
  trainer.train({});
  const std::string path = folder_ + "/" + row.network.name + (cuda ? "-cuda-" : "-cpu-") +
                           name_of(row.precision) + ".safetensors";
  trainer.save_weights(path);
  return file = path;
}

GpuMeter& EpochBench::meter(const Device& device) {
  std::unique_ptr<GpuMeter>& meter = meters_[&device];
  if (!meter) meter = std::make_unique<GpuMeter>(device, options_.energy_seconds);
  meter->measure_idle();
  return *meter;
}

bool EpochBench::wants_energy(const EpochRow& row) const {
  const std::vector<int>& wanted = options_.energy_batches;
  const auto holds = [](const std::vector<int>& list, int batch) {
    return std::find(list.begin(), list.end(), batch) != list.end();
  };
  if (!wanted.empty()) return holds(wanted, 0) || holds(wanted, row.batch);
  const bool usual = holds(batches_for(options_, *row.device), kEnergyBatch);
  return row.kind.starts_with("epoch_") && (row.batch == kEnergyBatch || !usual);
}

InferenceSession EpochBench::session(const EpochRow& row, bool fold) {
  const DataPair& data = all_images();
  return InferenceSession(row.network, weights(row),
                          {.h = data.train.height, .w = data.train.width, .c = data.train.channels},
                          data.train.classes, data.mean, data.std, *row.device,
                          {.precision = row.precision, .impl = impl(*row.device), .fold = fold});
}

}  // namespace kiln
