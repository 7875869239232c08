// The CPU backend: plain memory, copies at once, no recordings.
#include <cstdlib>
#include <cstring>

#include "kernels/common/error.h"
#include "nn/backend.h"

namespace kiln {
namespace {

// A network without batchnorm has empty statistics, whose host array is null.
void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

class CpuUploadRing : public UploadRing {
 public:
  void push(void* device, const void* host, size_t bytes) override { copy(device, host, bytes); }
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const Device& device) : device_(device) {}
  const Device& device() const override { return device_; }
  Stream stream() const override { return nullptr; }

  Memory allocate(size_t bytes) override {
    constexpr size_t kAlign = 256;
    const size_t rounded = std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
    void* memory = rounded < bytes ? nullptr : std::aligned_alloc(kAlign, rounded);
    if (memory == nullptr) fail_failure("out of memory: " + std::to_string(bytes) + " bytes wanted");
    std::memset(memory, 0, rounded);
    return Memory(memory, std::free);
  }

  void upload(void* device, const void* host, size_t bytes) override { copy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { copy(host, device, bytes); }
  void synchronize() override {}
  std::unique_ptr<UploadRing> make_upload_ring(size_t, int) override {
    return std::make_unique<CpuUploadRing>();
  }
  std::unique_ptr<Recording> record(const std::function<void()>&) override { return nullptr; }

 private:
  Device device_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const Device& device) {
  return std::make_unique<CpuBackend>(device);
}

}  // namespace kiln
