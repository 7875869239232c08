#include "harness/device_memory.h"

#ifdef KILN_WITH_CUDA
#include "kernels/common/check.h"
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kAlignment = 256;

#ifdef KILN_WITH_CUDA
// Copies go through one stream of their own and are waited for, so that they are ordered with every other
// stream.
cudaStream_t copy_stream() {
  static const cudaStream_t stream = [] {
    cudaStream_t s = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreate");
    return s;
  }();
  return stream;
}
#endif

}  // namespace

DeviceMemory::DeviceMemory(DeviceKind kind, size_t bytes) : kind_(kind), bytes_(bytes) {
  if (bytes == 0) return;
#ifdef KILN_WITH_CUDA
  if (kind == DeviceKind::kCuda) {
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, bytes), ("cudaMalloc of " + std::to_string(bytes) + " bytes").c_str());
    data_ = static_cast<unsigned char*>(data);
    return;
  }
#endif
  data_ = static_cast<unsigned char*>(
      std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (!data_) fail_failure("out of memory: " + std::to_string(bytes) + " bytes wanted");
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : kind_(other.kind_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(kind_, other.kind_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceMemory::~DeviceMemory() {
  if (!data_) return;
#ifdef KILN_WITH_CUDA
  if (kind_ == DeviceKind::kCuda) {
    cudaFree(data_);
    return;
  }
#endif
  std::free(data_);
}

void DeviceMemory::fill(unsigned char byte, size_t offset, size_t bytes) {
  if (bytes == 0) return;
#ifdef KILN_WITH_CUDA
  if (kind_ == DeviceKind::kCuda) {
    check_cuda(cudaMemsetAsync(data_ + offset, byte, bytes, copy_stream()), "cudaMemset");
    check_cuda(cudaStreamSynchronize(copy_stream()), "cudaMemset");
    return;
  }
#endif
  std::memset(data_ + offset, byte, bytes);
}

void DeviceMemory::upload(const void* host, size_t bytes, size_t offset) {
  if (bytes == 0) return;
#ifdef KILN_WITH_CUDA
  if (kind_ == DeviceKind::kCuda) {
    check_cuda(cudaMemcpyAsync(data_ + offset, host, bytes, cudaMemcpyHostToDevice, copy_stream()),
               "copy to the GPU");
    check_cuda(cudaStreamSynchronize(copy_stream()), "copy to the GPU");
    return;
  }
#endif
  std::memcpy(data_ + offset, host, bytes);
}

void DeviceMemory::download(void* host, size_t bytes, size_t offset) const {
  if (bytes == 0) return;
#ifdef KILN_WITH_CUDA
  if (kind_ == DeviceKind::kCuda) {
    check_cuda(cudaMemcpyAsync(host, data_ + offset, bytes, cudaMemcpyDeviceToHost, copy_stream()),
               "copy from the GPU");
    check_cuda(cudaStreamSynchronize(copy_stream()), "copy from the GPU");
    return;
  }
#endif
  std::memcpy(host, data_ + offset, bytes);
}

void DeviceMemory::copy_from(const DeviceMemory& other) {
  const size_t bytes = std::min(bytes_, other.bytes_);
  if (bytes == 0) return;
#ifdef KILN_WITH_CUDA
  if (kind_ == DeviceKind::kCuda) {
    check_cuda(cudaMemcpyAsync(data_, other.data_, bytes, cudaMemcpyDeviceToDevice, copy_stream()),
               "copy on the GPU");
    check_cuda(cudaStreamSynchronize(copy_stream()), "copy on the GPU");
    return;
  }
#endif
  std::memcpy(data_, other.data_, bytes);
}

OwnedStream::OwnedStream(DeviceKind kind) {
#ifdef KILN_WITH_CUDA
  if (kind == DeviceKind::kCuda) {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    stream_ = stream;
  }
#else
  (void)kind;
#endif
}

OwnedStream::~OwnedStream() {
#ifdef KILN_WITH_CUDA
  if (stream_) cudaStreamDestroy(cuda_stream(stream_));
#endif
}

void OwnedStream::synchronize() const {
#ifdef KILN_WITH_CUDA
  if (stream_) check_cuda(cudaStreamSynchronize(cuda_stream(stream_)), "kernel execution");
#endif
}

}  // namespace kiln
