// What the engine needs of a device: memory, stream-ordered copies, recorded sequences. The same Program code
// runs on both backends.
#pragma once

#include <functional>
#include <memory>

#include "kernels/common/device.h"

namespace kiln {

// Memory on the backend's device, 256-byte aligned, zero at first; freed with its last owner.
using Memory = std::shared_ptr<void>;

// A recorded sequence of launches (a CUDA graph).
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void launch() = 0;
};

// A few slots of host memory through which small blocks go to the device without stopping the host: a slot is
// used again only after the copy that read it is done.
class UploadRing {
 public:
  virtual ~UploadRing() = default;
  // Copies `bytes` (at most a slot's) to `device`, in stream order. `host` may be changed on return.
  virtual void push(void* device, const void* host, size_t bytes) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const Device& device() const = 0;
  virtual Stream stream() const = 0;
  virtual Memory allocate(size_t bytes) = 0;  // throws Error(kFailure) naming the bytes wanted and free
  // Both are in stream order and done on return.
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual std::unique_ptr<UploadRing> make_upload_ring(size_t slot_bytes, int slots) = 0;
  // Records what `launches` enqueues on stream(), without running it. Null where the device has no
  // recordings: the caller then goes on launching step by step.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& launches) = 0;
};

std::unique_ptr<Backend> make_cpu_backend(const Device& device);
#ifdef KILN_WITH_CUDA
std::unique_ptr<Backend> make_cuda_backend(const Device& device);
#endif
// Throws Error where this build has no such backend.
std::unique_ptr<Backend> make_backend(const Device& device);

}  // namespace kiln
