// What the driver's management library says of a GPU. It is loaded at run time; where it, the driver or the
// GPU is missing, everything here is simply absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kiln {

struct GpuSample {
  std::optional<unsigned> utilization_pct;  // share of the last sampling period with a kernel running
  std::optional<double> power_w;
  std::optional<unsigned> sm_mhz;
  std::optional<uint64_t> memory_used_bytes;  // of the whole card, all processes
  std::optional<uint64_t> clock_reasons;      // why the clocks are what they are: nvmlClocksEventReason* bits
  std::optional<uint64_t> energy_mj;          // millijoules since the driver was loaded
};

// "power cap, thermal": the reasons among GpuSample::clock_reasons that slow a GPU down; "" for none.
std::string slowdown_text(uint64_t clock_reasons);
// Those of them that are no property of the work itself (heat, the board's power supply).
bool is_disturbed(uint64_t clock_reasons);
bool is_power_capped(uint64_t clock_reasons);  // the work draws more power than the card may

class Nvml {
 public:
  // uuid: "GPU-..." as Device::uuid has it; "" gives an object without a GPU.
  explicit Nvml(const std::string& uuid);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool available() const { return gpu_ != nullptr; }
  GpuSample sample() const;
  std::string driver_version() const;  // "" where unknown
  std::optional<double> power_limit_w() const;

 private:
  template <class F>
  F symbol(const char* name) const;
  void* library_ = nullptr;
  void* gpu_ = nullptr;
};

}  // namespace kiln
