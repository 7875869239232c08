#include "harness/nvml.h"

#include <dlfcn.h>

namespace kiln {
namespace {

// The few parts of NVML's C interface that are used here, as its documentation states them.
constexpr int kSuccess = 0;
constexpr int kClockSm = 1;
struct Utilization {
  unsigned gpu, memory;
};
struct Memory {
  unsigned long long total, free, used;
};
using Init = int (*)();
using Shutdown = int (*)();
using HandleByUuid = int (*)(const char*, void**);
using GetUtilization = int (*)(void*, Utilization*);
using GetPower = int (*)(void*, unsigned*);  // milliwatts
using GetClock = int (*)(void*, int, unsigned*);
using GetMemory = int (*)(void*, Memory*);
using GetNumber = int (*)(void*, unsigned long long*);
using DriverVersion = int (*)(char*, unsigned);

// nvmlClocksEventReason*.
constexpr uint64_t kPowerCap = 0x4, kHwSlowdown = 0x8, kSwThermal = 0x20, kHwThermal = 0x40,
                   kPowerBrake = 0x80;

}  // namespace

std::string slowdown_text(uint64_t reasons) {
  std::string text;
  for (const auto& [bit, name] : {std::pair{kPowerCap, "power cap"},
                                  {kHwSlowdown, "hardware slowdown"},
                                  {kSwThermal, "software thermal slowdown"},
                                  {kHwThermal, "hardware thermal slowdown"},
                                  {kPowerBrake, "power brake"}}) {
    if (reasons & bit) text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text;
}

bool is_power_capped(uint64_t reasons) { return (reasons & kPowerCap) != 0; }

bool is_disturbed(uint64_t reasons) {
  return reasons & (kHwSlowdown | kSwThermal | kHwThermal | kPowerBrake);
}

template <class F>
F Nvml::symbol(const char* name) const {
  return library_ ? reinterpret_cast<F>(dlsym(library_, name)) : nullptr;
}

Nvml::Nvml(const std::string& uuid) {
  if (uuid.empty()) return;
  library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  const auto init = symbol<Init>("nvmlInit_v2");
  const auto find = symbol<HandleByUuid>("nvmlDeviceGetHandleByUUID");
  if (!init || !find || init() != kSuccess) {
    if (library_) dlclose(library_);
    library_ = nullptr;
    return;
  }
  if (find(uuid.c_str(), &gpu_) != kSuccess) gpu_ = nullptr;
}

Nvml::~Nvml() {
  if (const auto shutdown = symbol<Shutdown>("nvmlShutdown")) shutdown();
  if (library_) dlclose(library_);
}

GpuSample Nvml::sample() const {
  GpuSample s;
  if (!gpu_) return s;
  Utilization utilization{};
  unsigned milliwatts = 0, mhz = 0;
  Memory memory{};
  if (const auto f = symbol<GetUtilization>("nvmlDeviceGetUtilizationRates");
      f && f(gpu_, &utilization) == kSuccess) {
    s.utilization_pct = utilization.gpu;
  }
  if (const auto f = symbol<GetPower>("nvmlDeviceGetPowerUsage"); f && f(gpu_, &milliwatts) == kSuccess) {
    s.power_w = milliwatts / 1000.0;
  }
  if (const auto f = symbol<GetClock>("nvmlDeviceGetClockInfo"); f && f(gpu_, kClockSm, &mhz) == kSuccess) {
    s.sm_mhz = mhz;
  }
  if (const auto f = symbol<GetMemory>("nvmlDeviceGetMemoryInfo"); f && f(gpu_, &memory) == kSuccess) {
    s.memory_used_bytes = memory.used;
  }
  unsigned long long number = 0;
  for (const char* name :
       {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"}) {
    if (const auto f = symbol<GetNumber>(name); f && !s.clock_reasons && f(gpu_, &number) == kSuccess) {
      s.clock_reasons = number;
    }
  }
  if (const auto f = symbol<GetNumber>("nvmlDeviceGetTotalEnergyConsumption");
      f && f(gpu_, &number) == kSuccess) {
    s.energy_mj = number;
  }
  return s;
}

std::optional<double> Nvml::power_limit_w() const {
  unsigned milliwatts = 0;
  const auto f = symbol<GetPower>("nvmlDeviceGetEnforcedPowerLimit");
  if (!gpu_ || !f || f(gpu_, &milliwatts) != kSuccess) return std::nullopt;
  return milliwatts / 1000.0;
}

std::string Nvml::driver_version() const {
  char text[96] = "";
  const auto f = symbol<DriverVersion>("nvmlSystemGetDriverVersion");
  return f && f(text, sizeof text) == kSuccess ? text : "";
}

}  // namespace kiln
