// Trying a peer's plans on scratch tensors while a plan is made: does it run, and how long does it take? Host
// code of the peers alone; nothing here is used at launch.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/dtype.h"
#include "kernels/common/error.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

// The GPU for one process's trials at a time, where several processes try plans: they name one file in the
// environment variable KILN_TRIAL_TURNS, which is locked while this lives. Making plans needs no turn.
class TrialTurn {
 public:
  TrialTurn() {
    const char* const path = std::getenv("KILN_TRIAL_TURNS");
    if (!path) return;
    file_ = ::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file_ < 0 || ::flock(file_, LOCK_EX) != 0) fail_failure(std::string("cannot lock '") + path + "'");
  }
  ~TrialTurn() {
    if (file_ >= 0) ::close(file_);  // which unlocks it
  }
  TrialTurn(const TrialTurn&) = delete;
  TrialTurn& operator=(const TrialTurn&) = delete;

 private:
  int file_ = -1;
};

// A stream with two events. Trials use it alone.
class TrialStream {
 public:
  TrialStream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check_cuda(cudaEventCreate(&start_), "cudaEventCreate");
    check_cuda(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~TrialStream() {
    if (stop_) cudaEventDestroy(stop_);
    if (start_) cudaEventDestroy(start_);
    if (stream_) cudaStreamDestroy(stream_);
  }
  TrialStream(const TrialStream&) = delete;
  TrialStream& operator=(const TrialStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_), "peer trial"); }
  // Microseconds of one launch, inputs warm: one launch to warm up, one to estimate, then about a
  // millisecond's worth, 20 at most; none of these where one takes more than `too_slow_us`. Throws Error
  // where the launch fails.
  double time_us(const Bound& bound, double too_slow_us = std::numeric_limits<double>::infinity()) const {
    bound.launch(stream_);
    const double once = time_many_us(bound, 1);
    if (once > too_slow_us) return once;
    const int count = static_cast<int>(std::clamp(1000.0 / std::max(once, 1.0), 3.0, 20.0));
    return time_many_us(bound, count);
  }

 private:
  double time_many_us(const Bound& bound, int count) const {
    check_cuda(cudaEventRecord(start_, stream_), "cudaEventRecord");
    for (int i = 0; i < count; ++i) bound.launch(stream_);
    check_cuda(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(stop_), "peer trial");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
    return 1000.0 * static_cast<double>(ms) / count;
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

// `bytes` of noise in [-1, 1), the same each time: a pattern of 64 Ki values, repeated.
inline DeviceBuffer noise_buffer(size_t bytes, DType dtype, const TrialStream& stream) {
  constexpr size_t kPattern = 1 << 16;
  std::vector<unsigned char> pattern(kPattern * size_of(dtype));
  uint32_t state = 0x9e3779b9u;
  for (size_t i = 0; i < kPattern; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(state >> 8) * (2.0f / (1 << 24)) - 1.0f;
    const uint16_t half = bf16_bits(value);
    if (size_of(dtype) == 4) std::memcpy(&pattern[4 * i], &value, 4);
    if (size_of(dtype) == 2) std::memcpy(&pattern[2 * i], &half, 2);
  }
  DeviceBuffer buffer(bytes);
  size_t filled = std::min(bytes, pattern.size());
  check_cuda(cudaMemcpyAsync(buffer.data(), pattern.data(), filled, cudaMemcpyHostToDevice, stream.get()),
             "peer trial's data");
  while (filled < bytes) {
    const size_t more = std::min(filled, bytes - filled);
    check_cuda(cudaMemcpyAsync(static_cast<char*>(buffer.data()) + filled, buffer.data(), more,
                               cudaMemcpyDeviceToDevice, stream.get()),
               "peer trial's data");
    filled += more;
  }
  stream.wait();
  return buffer;
}

// Scratch tensors for a pass of a problem, as its Args.
template <class Pass>
class TrialArgs {
 public:
  TrialArgs(const typename Pass::Problem& problem, const TrialStream& stream) {
    std::array<void*, sizeof(typename Pass::Args) / sizeof(void*)> pointers{};
    size_t i = 0;
    for (const TensorSpec& tensor : Pass::tensors(problem)) {
      if (tensor.role != Role::kAbsent) {
        buffers_.push_back(noise_buffer(tensor.bytes(), tensor.dtype, stream));
        pointers.at(i) = buffers_.back().data();
      }
      ++i;
    }
    std::memcpy(&args_, pointers.data(), sizeof args_);
  }
  const typename Pass::Args& args() const { return args_; }

 private:
  std::vector<DeviceBuffer> buffers_;
  typename Pass::Args args_;
};

}  // namespace kiln
