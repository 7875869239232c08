// The devices kiln runs on. Needs no CUDA header; a build without CUDA, or a machine without a driver, simply
// has no CUDA device.
#pragma once

#include <cstddef>
#include <string>

namespace kiln {

enum class DeviceKind { kCpu, kCuda };

// What plans may depend on. A plain value, filled by cpu_device() or cuda_device().
struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  std::string name;           // "NVIDIA H100 80GB HBM3", "AMD EPYC ..."
  std::string uuid;           // CUDA only
  int sm = 0;                 // CUDA: compute capability, 90 for 9.0
  int multiprocessors = 0;    // CUDA
  size_t l2_bytes = 0;        // CUDA
  size_t smem_per_block = 0;  // CUDA: opt-in limit of dynamic shared memory per block, bytes
  size_t memory_bytes = 0;    // CUDA: total device memory
  int threads = 1;            // CPU: OpenMP threads
  std::string isa;            // CPU: widest vector extension the machine has, "AVX-512", "AVX2", "SSE2"
  bool is_cuda() const { return kind == DeviceKind::kCuda; }
};

// A cudaStream_t, untyped; nullptr on the CPU (and the legacy default stream nowhere: kiln never uses it).
using Stream = void*;

const Device& cpu_device();

// False where kiln was built without CUDA, there is no driver, or no device; cuda_unavailable_reason() says
// which.
bool cuda_available();
std::string cuda_unavailable_reason();  // "" where a device is available

// The current CUDA device. Throws Error(kFailure) with cuda_unavailable_reason(), or where the device is
// older than sm_80.
const Device& cuda_device();

// "cpu" or "cuda"; throws Error for any other word.
const Device& device_from_name(const std::string& name);

// "h100", "h200", else the driver's name as a slug; "cpu-<model slug>": the folder name under bench/results.
std::string device_slug(const Device& device);

}  // namespace kiln
