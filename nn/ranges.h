// Ranges that NVIDIA's tools (Nsight, ncu) show around what a thread enqueues. CUDA builds only.
#pragma once

#include <string>

namespace kiln {

// NVTX range from construction to destruction; none for an empty name.
class RangeScope {
 public:
  explicit RangeScope(const std::string& name);
  ~RangeScope();
  RangeScope(const RangeScope&) = delete;
  RangeScope& operator=(const RangeScope&) = delete;

 private:
  bool open_;
};

}  // namespace kiln
