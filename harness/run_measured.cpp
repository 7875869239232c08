#include "harness/run_measured.h"

#include <sys/resource.h>

#include <algorithm>

namespace kiln {

void RunMeasured::add(const DrainRecord& record, const GpuSample& gpu) {
  steps = record.step;
  epochs = record.epoch;
  skipped_updates = record.skipped_updates;
  losses.insert(losses.end(), record.step_losses.begin(), record.step_losses.end());
  device_bytes = std::max(device_bytes, gpu.memory_used_bytes.value_or(0));
  gpu_utilization.add(gpu.utilization_pct);
  gpu_power.add(gpu.power_w);
}

double RunMeasured::train_loss(long long steps_per_epoch) const {
  const size_t count = std::min<size_t>(losses.size(), static_cast<size_t>(steps_per_epoch));
  double sum = 0;
  for (size_t i = losses.size() - count; i < losses.size(); ++i) sum += losses[i];
  return count ? sum / static_cast<double>(count) : 0;
}

nlohmann::ordered_json metrics_line(const DrainRecord& r, double seconds, const GpuSample& gpu) {
  nlohmann::ordered_json line = {{"step", r.step},     {"epoch", r.epoch},
                                 {"loss", r.loss},     {"accuracy", r.accuracy},
                                 {"lr", r.lr},         {"images_per_s", r.images_per_s},
                                 {"seconds", seconds}, {"skipped_updates", r.skipped_updates}};
  if (gpu.utilization_pct) line["gpu_utilization_pct"] = *gpu.utilization_pct;
  if (gpu.power_w) line["gpu_power_w"] = *gpu.power_w;
  if (gpu.sm_mhz) line["gpu_sm_mhz"] = *gpu.sm_mhz;
  if (gpu.memory_used_bytes) line["gpu_memory_used_bytes"] = *gpu.memory_used_bytes;
  return line;
}

long long peak_host_bytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * 1024LL : 0;
}

}  // namespace kiln
