#include "kernels/common/cudnn/handle.h"

#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/cudnn/version.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

std::string version_text(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
         std::to_string(version % 100);
}

// The handles that nobody has borrowed, by device; never destroyed.
struct IdleHandles {
  std::mutex mutex;
  std::map<int, std::vector<std::shared_ptr<CudnnHandle>>> by_device;
};

IdleHandles& idle_handles() {
  static IdleHandles* const handles = new IdleHandles;
  return *handles;
}

}  // namespace

std::string cudnn_version() { return version_text(cudnnGetVersion()); }

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  cudaGetLastError();  // what cuDNN met on its way must not be blamed on the next kernel
  std::array<char, 1024> details{};
  cudnnGetLastErrorString(details.data(), details.size() - 1);
  std::string message = std::string(what) + ": " + cudnnGetErrorString(status);
  if (details[0] != '\0') message += std::string(" (") + details.data() + ")";
  fail_failure(message);
}

cudnnDataType_t cudnn_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kTF32:
      return CUDNN_DATA_FLOAT;
    case DType::kBF16:
      return CUDNN_DATA_BFLOAT16;
    default:
      fail_usage(std::string("the cuDNN peers take no ") + name_of(dtype));
  }
}

CudnnHandle::CudnnHandle() {
  if (cudnnGetVersion() < CUDNN_VERSION) {
    fail_failure("cuDNN " + cudnn_version() + " was loaded, but kiln was compiled against " +
                 version_text(CUDNN_VERSION) + "; LD_LIBRARY_PATH may name an older one");
  }
  check_cudnn(cudnnCreate(&handle_), "cudnnCreate");
}

CudnnHandle::~CudnnHandle() {
  if (handle_) cudnnDestroy(handle_);
}

std::shared_ptr<CudnnHandle> CudnnHandle::shared() {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<CudnnHandle>> by_device;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  std::weak_ptr<CudnnHandle>& slot = by_device[device];
  std::shared_ptr<CudnnHandle> handle = slot.lock();
  if (!handle) slot = handle = std::make_shared<CudnnHandle>();
  return handle;
}

BorrowedCudnnHandle::BorrowedCudnnHandle() {
  check_cuda(cudaGetDevice(&device_), "cudaGetDevice");
  IdleHandles& idle = idle_handles();
  {
    const std::lock_guard lock(idle.mutex);
    std::vector<std::shared_ptr<CudnnHandle>>& list = idle.by_device[device_];
    if (!list.empty()) {
      handle_ = std::move(list.back());
      list.pop_back();
    }
  }
  if (!handle_) handle_ = std::make_shared<CudnnHandle>();
}

BorrowedCudnnHandle::~BorrowedCudnnHandle() {
  IdleHandles& idle = idle_handles();
  const std::lock_guard lock(idle.mutex);
  idle.by_device[device_].push_back(std::move(handle_));
}

}  // namespace kiln
