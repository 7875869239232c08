// Owners of the legacy API's descriptors. Copies share one descriptor, so that launches can capture them.
#pragma once

#include <memory>
#include <string_view>

#include "kernels/common/cudnn/handle.h"
#include "kernels/common/impl.h"

namespace kiln {

using CudnnTensor = std::shared_ptr<cudnnTensorStruct>;

template <class Struct>
std::shared_ptr<Struct> make_cudnn_descriptor(cudnnStatus_t (*create)(Struct**),
                                              cudnnStatus_t (*destroy)(Struct*), const char* what) {
  Struct* raw = nullptr;
  check_cudnn(create(&raw), what);
  return std::shared_ptr<Struct>(raw, [destroy](Struct* p) { destroy(p); });
}

inline CudnnTensor empty_cudnn_tensor() {
  return make_cudnn_descriptor(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor,
                               "cudnnCreateTensorDescriptor");
}

// A packed [n,h,w,c] tensor.
inline CudnnTensor nhwc_cudnn_tensor(DType dtype, int n, int h, int w, int c) {
  CudnnTensor tensor = empty_cudnn_tensor();
  check_cudnn(cudnnSetTensor4dDescriptor(tensor.get(), CUDNN_TENSOR_NHWC, cudnn_type(dtype), n, c, h, w),
              "cudnnSetTensor4dDescriptor");
  return tensor;
}

// For peers with nothing to choose: throws Error for any config but "" and "default".
inline void require_default_config(std::string_view config) {
  if (config != "default") require_no_config(config);
}

}  // namespace kiln
