// What `kiln train` measures while a run goes on.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "harness/nvml.h"
#include "nn/trainer.h"

namespace kiln {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Mean of the samples that were there.
template <class T>
struct RunningMean {
  double sum = 0;
  long long count = 0;
  void add(const std::optional<T>& sample) {
    if (sample) sum += static_cast<double>(*sample), ++count;
  }
};

struct RunMeasured {
  Clock::time_point start = Clock::now();
  double eval_seconds = 0;              // inside the run, taken out of train_seconds
  long long first_step = 0, steps = 0;  // done before this run, done in all
  double epochs = 0;
  long long skipped_updates = 0;
  std::vector<float> losses;  // of every step
  uint64_t device_bytes = 0;  // most seen in use on the card
  RunningMean<unsigned> gpu_utilization;
  RunningMean<double> gpu_power;

  void add(const DrainRecord& record, const GpuSample& gpu);
  double train_seconds() const { return seconds_since(start) - eval_seconds; }
  // Mean over the last epoch's steps.
  double train_loss(long long steps_per_epoch) const;
};

// A line of the run's metrics.jsonl, `seconds` after its start.
nlohmann::ordered_json metrics_line(const DrainRecord& record, double seconds, const GpuSample& gpu);

// The most that this process has had in memory.
long long peak_host_bytes();

}  // namespace kiln
