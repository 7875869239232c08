// Runs any pass on host tensors: what `kiln op`, the tests and bench_layers share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "harness/device_memory.h"
#include "kernels/common/registry.h"

namespace kiln {

// The tensors of one Args in device memory, each with `guard_bytes` (a multiple of 256) of a known pattern on
// both sides.
class TensorBuffers {
 public:
  // specs: of the problem in the dtype that runs.
  TensorBuffers(std::vector<TensorSpec> specs, DeviceKind kind, size_t guard_bytes = 0);

  // Writes guards, inputs (given in fp32, rounded to their dtype on the way) and, unless told otherwise, NaN
  // (all bits set) into outputs.
  void upload(const HostTensors& inputs, bool fill_outputs = true);
  void copy_from(const TensorBuffers& other);
  // The outputs, floating-point ones widened to fp32; the other entries have no data.
  HostTensors download() const;
  // "" or which tensor's guard bytes were overwritten, and on which side.
  std::string broken_guard() const;
  std::vector<void*> pointers() const;  // one a spec, null for absent ones
  size_t bytes() const;                 // of all tensors
  const std::vector<TensorSpec>& specs() const { return specs_; }

 private:
  std::vector<TensorSpec> specs_;
  std::vector<DeviceMemory> memory_;
  size_t guard_bytes_;
};

struct ExecuteOptions {
  size_t guard_bytes = 0;               // also around the workspace
  unsigned char workspace_fill = 0xff;  // the workspace's contents before the launch
  // Leave outputs and workspace undefined, so that compute-sanitizer's initcheck sees what is read before it
  // is written.
  bool undefined = false;
};

// Runs `impl` ("name" or "name:config") once and waits for it. `inputs` are in fp32 (integers as they are),
// one entry a TensorSpec. Returns the outputs as TensorBuffers::download() does. Throws Error(kFailure) where
// guard bytes were overwritten or the launch failed.
HostTensors execute(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                    std::string_view impl, const HostTensors& inputs, const ExecuteOptions& options = {});

// Rounds fp32 values to the nearest of `dtype` and back, in place; nothing for fp32 and integers.
void round_values(DType dtype, float* values, int64_t count);

}  // namespace kiln
