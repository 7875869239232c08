// CUDA error checks and owners. CUDA sources only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

namespace kiln {

// Throws Error(kFailure) "<what>: <CUDA's text>"; clears a non-sticky error.
void check_cuda(cudaError_t status, const char* what);
// After every <<<>>>: checks cudaGetLastError. `kernel` is the kernel's name.
void check_launch(const char* kernel);

inline cudaStream_t cuda_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// Device memory, freed at the end of its life. Move only.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes);  // throws Error(kFailure) naming the bytes wanted and free
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace kiln
