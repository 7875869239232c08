// cuDNN's handle, status codes and element types, for the peers (*_cudnn.cpp) alone.
#pragma once

#include <cudnn.h>

#include <memory>
#include <mutex>

#include "kernels/common/device.h"
#include "kernels/common/dtype.h"

namespace kiln {

// Throws Error(kFailure) "<what>: <cuDNN's text> (<its details>)"; clears a non-sticky CUDA error.
void check_cudnn(cudnnStatus_t status, const char* what);

// CUDNN_DATA_FLOAT for fp32 and tf32, CUDNN_DATA_BFLOAT16 for bf16; throws Error for any other type.
cudnnDataType_t cudnn_type(DType dtype);

// Scaling factors of the legacy API, which wants pointers to fp32 values in host memory.
inline constexpr float kCudnnOne = 1.0f;
inline constexpr float kCudnnZero = 0.0f;

// A cuDNN handle. Every plan owns a share; plans on one device share one, because making a handle is slow.
class CudnnHandle {
 public:
  // The current device's handle. Throws Error where the library that was loaded is older than the headers.
  static std::shared_ptr<CudnnHandle> shared();

  CudnnHandle();
  ~CudnnHandle();
  CudnnHandle(const CudnnHandle&) = delete;
  CudnnHandle& operator=(const CudnnHandle&) = delete;

  // Calls use(handle) with the handle on `stream`. A handle holds one stream, so threads take turns.
  template <class Use>
  void on(Stream stream, Use use) {
    const std::lock_guard lock(mutex_);
    check_cudnn(cudnnSetStream(handle_, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
    use(handle_);
  }
  // Calls use(handle) for work that needs no stream (queries, building plans); returns what it returns.
  template <class Use>
  auto with(Use use) {
    const std::lock_guard lock(mutex_);
    return use(handle_);
  }

 private:
  cudnnHandle_t handle_ = nullptr;
  std::mutex mutex_;
};

// A handle of the current device for building plans, nobody else's while this lives: plans that several
// threads build at a time do not wait for each other. Plans keep a share of it to run with. Handles that were
// lent come back and are lent again; they stay until the end of the process, after which CUDA may be gone.
class BorrowedCudnnHandle {
 public:
  BorrowedCudnnHandle();
  ~BorrowedCudnnHandle();
  BorrowedCudnnHandle(const BorrowedCudnnHandle&) = delete;
  BorrowedCudnnHandle& operator=(const BorrowedCudnnHandle&) = delete;
  const std::shared_ptr<CudnnHandle>& get() const { return handle_; }

 private:
  int device_ = 0;
  std::shared_ptr<CudnnHandle> handle_;
};

}  // namespace kiln
