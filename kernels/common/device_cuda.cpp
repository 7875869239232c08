#include <cuda_runtime.h>

#include <cstdio>

#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr int kOldestSm = 80;

struct Probe {
  Device device;
  std::string reason;
  ErrorKind kind = ErrorKind::kFailure;
};

Probe probe_device() {
  Probe probe;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    probe.reason = status == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one too old for CUDA 13"
                   : status == cudaErrorNoDevice || count == 0 ? "no GPU found"
                                                               : cudaGetErrorString(status);
    return probe;
  }
  int ordinal = 0;
  cudaDeviceProp properties{};
  check_cuda(cudaGetDevice(&ordinal), "cudaGetDevice");
  check_cuda(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  Device& d = probe.device;
  d.kind = DeviceKind::kCuda;
  d.name = properties.name;
  d.sm = properties.major * 10 + properties.minor;
  d.multiprocessors = properties.multiProcessorCount;
  d.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  d.smem_per_block = properties.sharedMemPerBlockOptin;
  d.memory_bytes = properties.totalGlobalMem;
  char uuid[48];
  const auto* b = reinterpret_cast<const unsigned char*>(properties.uuid.bytes);
  std::snprintf(uuid, sizeof uuid, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
                b[15]);
  d.uuid = uuid;
  if (d.sm < kOldestSm) {
    probe.reason = "the GPU '" + d.name + "' has compute capability " + std::to_string(properties.major) +
                   "." + std::to_string(properties.minor) + ", kiln needs 8.0 or newer";
  }
  return probe;
}

const Probe& probe() {
  static const Probe result = probe_device();
  return result;
}

}  // namespace

bool cuda_available() { return probe().reason.empty(); }
std::string cuda_unavailable_reason() { return probe().reason; }

const Device& cuda_device() {
  if (!cuda_available()) fail_failure("no CUDA device: " + cuda_unavailable_reason());
  return probe().device;
}

}  // namespace kiln
