// Energy, power, utilisation and clocks of the GPU over a window of time, from NVML. What is unknown, and
// everything on the CPU, is NaN.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "harness/nvml.h"
#include "kernels/common/device.h"
#include "nn/backend.h"

namespace kiln {

struct GpuUse {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  double joules = kUnknown;  // above what an idle GPU takes
  double idle_w = kUnknown, power_w = kUnknown, utilization_pct = kUnknown,
         sm_mhz = kUnknown;  // means; median of the clock
  std::string slowdown;      // what held the clocks down: "power cap", ...
};

class GpuMeter {
 public:
  // energy_seconds: a window of energy is at least so long; 0 for no energy.
  GpuMeter(const Device& device, double energy_seconds);
  ~GpuMeter();

  // Once before anything runs: the power of the idle GPU with a CUDA context, over 2 s.
  void measure_idle();

  // energy: whether this window is to be one of energy.
  void start(bool energy);
  void look();  // anywhere in the window while the GPU was busy a moment ago; cheap if too frequent
  bool long_enough() const;  // for energy
  GpuUse stop();

 private:
  double seconds() const;
  Nvml nvml_;
  const Device& device_;
  double energy_seconds_, idle_w_ = GpuUse::kUnknown;
  bool has_energy_ = false, idle_measured_ = false, wants_energy_ = false;
  std::unique_ptr<Backend> context_;  // keeps the GPU as it is between rows
  std::chrono::steady_clock::time_point start_, last_look_;
  uint64_t start_mj_ = 0, reasons_ = 0;
  std::vector<double> utilization_, mhz_;
};

}  // namespace kiln
