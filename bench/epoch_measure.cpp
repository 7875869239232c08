// Training and evaluation: wall time of Trainer::train() and evaluate().
#include "bench/epoch_measure.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kFewestSamples = 3;      // of a median
constexpr double kWholeSeconds = 2;       // whole epochs are worth that, where three fit
constexpr int kParts = 4, kCpuParts = 8;  // of an epoch, between which the loss is read

// Images of the first `steps` steps; an epoch's last batch may be small.
long long images_of_steps(long long steps, long long batch, long long count) {
  const long long steps_per_epoch = (count + batch - 1) / batch;
  return steps / steps_per_epoch * count + std::min(steps % steps_per_epoch * batch, count);
}

// On the CPU a network that is run in full runs one epoch.
bool is_only_epoch(const EpochBench& bench, const EpochRow& row) {
  return !row.device->is_cuda() && bench.in_full(row);
}

// Samples of a training run, taken in the Trainer's drains: whole epochs, or parts where three epochs would
// not fit the budget. The first epoch is the warm-up, except where one epoch is all that is run.
class TrainSampler {
 public:
  TrainSampler(EpochBench& bench, const EpochRow& row, long long count)
      : count_(count),
        batch_(row.batch),
        steps_((count + row.batch - 1) / row.batch),
        only_epoch_(is_only_epoch(bench, row)),
        energy_(bench.wants_energy(row)),
        budget_(row.device->is_cuda() ? bench.options().seconds : bench.options().cpu_seconds),
        whole_budget_(std::max({budget_, kWholeSeconds, energy_ ? bench.options().energy_seconds : 0})),
        meter_(bench.meter(*row.device)) {
    if (only_epoch_) begin();
    part_.restart();
  }

  bool take(const DrainRecord& record) {
    const double seconds = part_.seconds();
    const bool epoch_end = record.step % steps_ == 0;
    const long long images = images_of_steps(record.step, batch_, count_);
    if (std::isnan(result.start_loss)) {
      result.start_loss = record.step_losses.empty() ? record.loss : record.step_losses.front();
    }
    result.end_loss = record.loss;
    skipped_ = record.skipped_updates;
    epoch_seconds_ += seconds;
    if (begun_) {
      if (!whole_) add(seconds, images - images_);
      if (whole_ && epoch_end) add(epoch_seconds_, count_);
    } else if (epoch_end) {
      whole_ = static_cast<double>(kFewestSamples) * epoch_seconds_ <= whole_budget_;
      images_ = images;
      begin();
    }
    const bool over = only_epoch_ ? epoch_end
                                  : begun_ && (epoch_end || !whole_) && samples_.size() >= kFewestSamples &&
                                        window_.seconds() >= budget_ && meter_.long_enough();
    if (over) return finish(images), false;
    if (epoch_end) epoch_seconds_ = 0;
    images_ = images;
    meter_.look();
    part_.restart();
    return true;
  }

  EpochResult result;

 private:
  void begin() {
    begun_ = true;
    begin_images_ = images_;
    meter_.start(energy_);
    window_.restart();
  }
  void add(double seconds, long long images) {
    samples_.push_back(seconds * kEpochImages / static_cast<double>(images));
  }
  void finish(long long images) {
    take_gpu_use(meter_, images - begin_images_, &result);
    summarize_epochs(samples_, &result);
    if (only_epoch_) {
      result.seconds = epoch_seconds_ * kEpochImages / static_cast<double>(count_);
      result.images_per_s = kEpochImages / result.seconds;
    }
    if (!whole_ && !only_epoch_ && count_ == kEpochImages) result.note = ", parts of epochs";
    if (count_ != kEpochImages) result.note = scaled_note(images - begin_images_, window_.seconds());
    if (!std::isfinite(result.start_loss) || !(result.end_loss < result.start_loss)) {
      result.error = "the loss did not fall: " + std::to_string(result.start_loss) + " -> " +
                     std::to_string(result.end_loss);
    }
    if (skipped_ > 0) result.error = std::to_string(skipped_) + " updates were not finite";
  }

  const long long count_, batch_, steps_;
  const bool only_epoch_, energy_;
  const double budget_, whole_budget_;
  GpuMeter& meter_;
  Stopwatch part_, window_;
  double epoch_seconds_ = 0;
  long long images_ = 0, begin_images_ = 0, skipped_ = 0;
  bool begun_ = false, whole_ = false;
  std::vector<double> samples_;
};

}  // namespace

EpochResult measure_train(EpochBench& bench, const EpochRow& row) {
  const DataPair& data = bench.training_data(row);
  if (data.train.count() < row.batch) fail_usage("the data set has fewer images than the batch");
  TrainOptions options = bench.train_options(row);
  const long long steps = (data.train.count() + row.batch - 1) / row.batch;
  const long long parts = is_only_epoch(bench, row) ? kCpuParts : kParts;
  options.drain_every = static_cast<int>((steps + parts - 1) / parts);
  Trainer trainer(row.network, data, *row.device, options);
  TrainSampler sampler(bench, row, data.train.count());
  // With a callback at an epoch's end the trainer drains there, too.
  trainer.train([&](const DrainRecord& record) { return sampler.take(record); }, [](int) {});
  return sampler.result;
}

EpochResult measure_infer(EpochBench& bench, const EpochRow& row) {
  const DataPair& data = bench.evaluation_data(row);
  if (data.test.count() < row.batch) fail_usage("the data set has fewer images than the batch");
  const bool cuda = row.device->is_cuda();
  TrainOptions options = bench.train_options(row);
  options.batch = static_cast<int>(data.train.count());
  options.eval_batch = row.batch;
  Trainer trainer(row.network, data, *row.device, options);
  trainer.load_weights(bench.weights(row));
  GpuMeter& meter = bench.meter(*row.device);

  EpochResult result;
  const EvalResult first = trainer.evaluate();
  bool same = true;
  const auto again = [&] {
    const EvalResult r = trainer.evaluate();
    same = same && r.loss == first.loss && r.correct == first.correct;
  };
  if (cuda) again();  // the second run records what later ones replay
  const double budget = cuda ? bench.options().seconds : bench.options().cpu_seconds / 2;
  const size_t fewest = is_only_epoch(bench, row) ? 1 : kFewestSamples;
  std::vector<double> samples;
  meter.start(bench.wants_energy(row));
  const Stopwatch window;
  do {
    const Stopwatch sample;
    again();
    samples.push_back(sample.seconds() * kEpochImages / static_cast<double>(first.images));
    meter.look();
  } while (samples.size() < fewest || window.seconds() < budget || !meter.long_enough());
  const long long images = first.images * static_cast<long long>(samples.size());
  take_gpu_use(meter, images, &result);
  summarize_epochs(samples, &result);
  result.start_loss = result.end_loss = first.loss;
  if (first.images != kEpochImages) result.note = scaled_note(images, window.seconds());
  if (!std::isfinite(first.loss)) result.error = "the loss is not finite";
  if (!same) result.error = "two evaluations of the same weights differ";
  if (first.images != data.test.count()) result.error = "not every image was evaluated";
  return result;
}

}  // namespace kiln
