// Whether the GPU held its clocks while something was measured (NVML; without it nothing is known).
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "harness/nvml.h"

namespace kiln {

class ClockWatch {
 public:
  explicit ClockWatch(const std::string& uuid) : nvml_(uuid) {}
  void start();
  // Between launches, while the GPU is busy or was a moment ago; asks at most ten times a second, since an
  // answer takes milliseconds.
  void look();
  double sm_mhz() const;  // median of the looks since start(); NaN where unknown
  // What slowed the clocks since start(): "power cap", ...; "" for nothing.
  std::string slowdown() const { return slowdown_text(reasons_); }
  bool power_capped() const { return is_power_capped(reasons_); }
  // True where heat or the board's power supply slowed them, or the looks differ by more than 5 %: the row is
  // to be measured again.
  bool disturbed() const;

 private:
  Nvml nvml_;
  std::chrono::steady_clock::time_point next_look_;
  std::vector<double> mhz_;
  uint64_t reasons_ = 0;
};

}  // namespace kiln
