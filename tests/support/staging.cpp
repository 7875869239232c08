#include "tests/support/staging.h"

#include <algorithm>

#ifdef KILN_WITH_CUDA
#include "kernels/common/check.h"
#endif

namespace kiln {
namespace {

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

double TensorView::value(int64_t i) const {
  switch (dtype) {
    case DType::kU8:
      return static_cast<const unsigned char*>(data)[i];
    case DType::kI32:
      return static_cast<const int32_t*>(data)[i];
    case DType::kBF16:
      return bf16_value(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

std::vector<TensorView> views_of(const HostTensors& tensors) {
  std::vector<TensorView> views;
  for (const HostTensor& tensor : tensors) views.push_back({tensor.spec.dtype, tensor.data.data()});
  return views;
}

Staging& shared_staging() {
  static Staging* const staging = new Staging;
  return *staging;
}

void Staging::reserve(size_t bytes) {
#ifdef KILN_WITH_CUDA
  if (bytes <= bytes_) return;
  bytes = std::max(bytes, 2 * bytes_);  // not again for every larger tensor
  if (data_) check_cuda(cudaFreeHost(data_), "cudaFreeHost");
  data_ = nullptr;
  bytes_ = 0;
  void* data = nullptr;
  check_cuda(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  data_ = static_cast<unsigned char*>(data);
  bytes_ = bytes;
#else
  (void)bytes;
#endif
}

std::vector<TensorView> Staging::download(const TensorBuffers& buffers, DeviceKind kind) {
  const std::vector<void*> pointers = buffers.pointers();
  const std::vector<TensorSpec>& specs = buffers.specs();
  std::vector<TensorView> views(specs.size());
  size_t bytes = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    views[i].dtype = specs[i].dtype;
    if (!specs[i].is_output()) continue;
    views[i].data = pointers[i];
    bytes += aligned(specs[i].bytes());
  }
  if (kind == DeviceKind::kCpu) return views;
#ifdef KILN_WITH_CUDA
  reserve(bytes);
  const OwnedStream stream(kind);
  size_t offset = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].is_output()) continue;
    check_cuda(cudaMemcpyAsync(data_ + offset, pointers[i], specs[i].bytes(), cudaMemcpyDeviceToHost,
                               cuda_stream(stream.get())),
               "copy from the GPU");
    views[i].data = data_ + offset;
    offset += aligned(specs[i].bytes());
  }
  stream.synchronize();
#endif
  return views;
}

}  // namespace kiln
