#include "bench/clock_watch.h"

#include <algorithm>

namespace kiln {
namespace {

constexpr std::chrono::milliseconds kBetweenLooks(100);

}  // namespace

void ClockWatch::start() {
  next_look_ = {};
  mhz_.clear();
  reasons_ = 0;
}

void ClockWatch::look() {
  if (std::chrono::steady_clock::now() < next_look_) return;
  const GpuSample sample = nvml_.sample();
  next_look_ = std::chrono::steady_clock::now() + kBetweenLooks;
  if (sample.sm_mhz) mhz_.push_back(*sample.sm_mhz);
  if (sample.clock_reasons) reasons_ |= *sample.clock_reasons;
}

double ClockWatch::sm_mhz() const {
  if (mhz_.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::vector<double> sorted = mhz_;
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

bool ClockWatch::disturbed() const {
  if (is_disturbed(reasons_)) return true;
  if (mhz_.size() < 2 || !slowdown_text(reasons_).empty()) return false;  // a power cap moves the clocks
  const auto [least, most] = std::minmax_element(mhz_.begin(), mhz_.end());
  return *most > 1.05 * *least;
}

}  // namespace kiln
