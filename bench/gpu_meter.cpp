#include "bench/gpu_meter.h"

#include <algorithm>
#include <numeric>
#include <thread>

namespace kiln {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::duration<double> kSettle(0.5), kIdle(2.0);
// NVML's own figures are means over a tenth of a second or more, and asking takes milliseconds.
constexpr double kLookEvery = 0.5;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

GpuMeter::GpuMeter(const Device& device, double energy_seconds)
    : nvml_(device.uuid), device_(device), energy_seconds_(energy_seconds) {}
GpuMeter::~GpuMeter() = default;

void GpuMeter::measure_idle() {
  if (idle_measured_ || !device_.is_cuda()) return;
  idle_measured_ = true;
  has_energy_ = energy_seconds_ > 0 && nvml_.sample().energy_mj.has_value();
  if (!has_energy_) return;
  context_ = make_backend(device_);
  context_->synchronize();
  std::this_thread::sleep_for(kSettle);
  const auto from = nvml_.sample().energy_mj;
  const Clock::time_point start = Clock::now();
  std::this_thread::sleep_for(kIdle);
  const auto to = nvml_.sample().energy_mj;
  has_energy_ = from && to;
  if (has_energy_) idle_w_ = static_cast<double>(*to - *from) / 1000 / seconds_between(start, Clock::now());
}

void GpuMeter::start(bool energy) {
  wants_energy_ = has_energy_ && energy;
  const GpuSample sample = nvml_.sample();
  start_ = last_look_ = Clock::now();
  start_mj_ = sample.energy_mj.value_or(0);
  reasons_ = 0;
  utilization_.clear();
  mhz_.clear();
}

double GpuMeter::seconds() const { return seconds_between(start_, Clock::now()); }

bool GpuMeter::long_enough() const { return !wants_energy_ || seconds() >= energy_seconds_; }

void GpuMeter::look() {
  if (!nvml_.available() || seconds_between(last_look_, Clock::now()) < kLookEvery) return;
  const GpuSample sample = nvml_.sample();
  last_look_ = Clock::now();
  if (sample.utilization_pct) utilization_.push_back(*sample.utilization_pct);
  if (sample.sm_mhz) mhz_.push_back(*sample.sm_mhz);
  reasons_ |= sample.clock_reasons.value_or(0);
}

GpuUse GpuMeter::stop() {
  GpuUse use;
  if (!nvml_.available()) return use;
  const GpuSample last = nvml_.sample();
  const double window = seconds();
  if (wants_energy_ && last.energy_mj && window >= energy_seconds_) {
    const double joules = static_cast<double>(*last.energy_mj - start_mj_) / 1000;
    use.idle_w = idle_w_;
    use.power_w = joules / window;
    use.joules = joules - idle_w_ * window;
  }
  if (!utilization_.empty()) {
    use.utilization_pct = std::accumulate(utilization_.begin(), utilization_.end(), 0.0) /
                          static_cast<double>(utilization_.size());
  }
  if (!mhz_.empty()) {
    std::nth_element(mhz_.begin(), mhz_.begin() + mhz_.size() / 2, mhz_.end());
    use.sm_mhz = mhz_[mhz_.size() / 2];
  }
  use.slowdown = slowdown_text(reasons_);
  return use;
}

}  // namespace kiln
