#include "kernels/common/counters.h"

namespace kiln {

std::shared_ptr<const DeviceBuffer> zeroed_counters(int count) {
  const size_t bytes = sizeof(unsigned) * static_cast<size_t>(count);
  auto counters = std::make_shared<DeviceBuffer>(bytes);
  cudaStream_t stream = nullptr;  // one of its own: work on other streams neither waits nor overtakes
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cudaError_t status = cudaMemsetAsync(counters->data(), 0, bytes, stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check_cuda(status, "cudaMemset of block counters");
  return counters;
}

}  // namespace kiln
