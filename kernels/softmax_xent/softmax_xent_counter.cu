// The counter of arrived blocks that softmax_xent_finish (softmax_xent_row.cuh) needs: one word of device
// memory, 0 before the first launch; each launch leaves it at 0.
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {

std::shared_ptr<const DeviceBuffer> softmax_xent_counter() {
  auto counter = std::make_shared<DeviceBuffer>(sizeof(unsigned));
  cudaStream_t stream = nullptr;  // one of its own: work on other streams neither waits nor overtakes
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cudaError_t status = cudaMemsetAsync(counter->data(), 0, sizeof(unsigned), stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check_cuda(status, "cudaMemset of softmax_xent's counter");
  return counter;
}

}  // namespace kiln
