#include "nn/backend.h"

#include "kernels/common/error.h"

namespace kiln {

std::unique_ptr<Backend> make_backend(const Device& device) {
  if (!device.is_cuda()) return make_cpu_backend(device);
#ifdef KILN_WITH_CUDA
  return make_cuda_backend(device);
#else
  fail_failure("device " + device.name + ": kiln was built without CUDA");
#endif
}

}  // namespace kiln
