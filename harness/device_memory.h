// Memory and streams of either device behind one interface, for tools that run any pass on any device (`kiln
// op`, tests, bench_layers). Needs no CUDA header.
#pragma once

#include <cstddef>

#include "kernels/common/device.h"

namespace kiln {

// Memory of a device, 256-byte aligned, contents undefined. Copies and fills are complete when they return.
// Move only.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceKind kind, size_t bytes);  // throws Error(kFailure) where memory is short
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void fill(unsigned char byte, size_t offset, size_t bytes);
  void upload(const void* host, size_t bytes, size_t offset = 0);
  void download(void* host, size_t bytes, size_t offset = 0) const;
  void copy_from(const DeviceMemory& other);  // as many bytes, same device

 private:
  DeviceKind kind_ = DeviceKind::kCpu;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
};

// A stream that does not synchronise with the default stream; nullptr on the CPU.
class OwnedStream {
 public:
  explicit OwnedStream(DeviceKind kind);
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream();
  Stream get() const { return stream_; }
  void synchronize() const;  // throws Error(kFailure) for what went wrong on the device

 private:
  Stream stream_ = nullptr;
};

}  // namespace kiln
