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
using DriverVersion = int (*)(char*, unsigned);

}  // namespace

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
  return s;
}

std::string Nvml::driver_version() const {
  char text[96] = "";
  const auto f = symbol<DriverVersion>("nvmlSystemGetDriverVersion");
  return f && f(text, sizeof text) == kSuccess ? text : "";
}

}  // namespace kiln
