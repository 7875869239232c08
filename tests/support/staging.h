// Outputs as they lie in memory: read where they are on the CPU, from page-locked memory that one fast copy
// fills on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "harness/execute.h"

namespace kiln {

// A tensor's values in host memory, in the type they are stored in. Does not own them.
struct TensorView {
  DType dtype = DType::kF32;
  const void* data = nullptr;  // [elements]; null for what is no output

  double value(int64_t i) const;
};

// One view a tensor; fp32, int32 or uint8.
std::vector<TensorView> views_of(const HostTensors& tensors);

// Page-locked memory that copies from the GPU are fastest into; kept from one download to the next and grown
// where a larger one comes.
class Staging {
 public:
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // The outputs of `buffers`, valid until the next download, and on the CPU until the buffers change.
  std::vector<TensorView> download(const TensorBuffers& buffers, DeviceKind kind);

 private:
  friend Staging& shared_staging();
  Staging() = default;
  void reserve(size_t bytes);
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
};

// The one that everything downloads through, since page-locking takes longer than a copy. It is never freed:
// at the end of the process CUDA may be gone before it.
Staging& shared_staging();

}  // namespace kiln
