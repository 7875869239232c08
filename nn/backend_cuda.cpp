// The CUDA backend: one non-blocking stream, pinned upload slots, stream capture into graphs.
#include <cstring>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/error.h"
#include "nn/backend.h"

namespace kiln {
namespace {

class CudaRecording : public Recording {
 public:
  CudaRecording(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
  }
  ~CudaRecording() override { cudaGraphExecDestroy(executable_); }
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;
  void launch() override { check_cuda(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

class CudaUploadRing : public UploadRing {
 public:
  CudaUploadRing(cudaStream_t stream, size_t slot_bytes, int slots)
      : stream_(stream), slot_bytes_((slot_bytes + 255) / 256 * 256) {
    check_cuda(cudaMallocHost(&memory_, slot_bytes_ * slots), "cudaMallocHost");
    for (int i = 0; i < slots; ++i) {
      events_.push_back(nullptr);
      check_cuda(cudaEventCreateWithFlags(&events_.back(), cudaEventDisableTiming), "cudaEventCreate");
    }
  }
  ~CudaUploadRing() override {
    cudaStreamSynchronize(stream_);
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaFreeHost(memory_);
  }
  CudaUploadRing(const CudaUploadRing&) = delete;
  CudaUploadRing& operator=(const CudaUploadRing&) = delete;

  void push(void* device, const void* host, size_t bytes) override {
    if (bytes > slot_bytes_)
      fail_failure("upload of " + std::to_string(bytes) + " bytes through a smaller slot");
    cudaEvent_t event = events_[next_];
    check_cuda(cudaEventSynchronize(event), "cudaEventSynchronize");  // at once for a slot never used
    char* slot = static_cast<char*>(memory_) + slot_bytes_ * next_;
    std::memcpy(slot, host, bytes);
    check_cuda(cudaMemcpyAsync(device, slot, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    check_cuda(cudaEventRecord(event, stream_), "cudaEventRecord");
    next_ = (next_ + 1) % events_.size();
  }

 private:
  cudaStream_t stream_;
  size_t slot_bytes_, next_ = 0;
  void* memory_ = nullptr;
  std::vector<cudaEvent_t> events_;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const Device& device) : device_(device) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~CudaBackend() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  const Device& device() const override { return device_; }
  Stream stream() const override { return stream_; }

  Memory allocate(size_t bytes) override {
    auto buffer = std::make_shared<DeviceBuffer>(std::max<size_t>(bytes, 256));
    check_cuda(cudaMemsetAsync(buffer->data(), 0, buffer->bytes(), stream_), "cudaMemsetAsync");
    return Memory(buffer, buffer->data());
  }

  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  void download(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  std::unique_ptr<UploadRing> make_upload_ring(size_t slot_bytes, int slots) override {
    return std::make_unique<CudaUploadRing>(stream_, slot_bytes, slots);
  }

  std::unique_ptr<Recording> record(const std::function<void()>& launches) override {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      launches();
    } catch (...) {  // the stream must leave capture mode, whatever broke
      cudaStreamEndCapture(stream_, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    return std::make_unique<CudaRecording>(graph, stream_);
  }

 private:
  Device device_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const Device& device) {
  return std::make_unique<CudaBackend>(device);
}

}  // namespace kiln
