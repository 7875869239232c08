// Judges one case: an implementation's outputs against the reference's on the same inputs.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "harness/execute.h"
#include "kernels/common/registry.h"
#include "tests/support/fill.h"
#include "tests/support/staging.h"

namespace kiln {

// Up to here (1 GMAC is 2 GFLOP; bytes of all tensors in fp32) cpu_naive is the judge; beyond, on a machine
// with a GPU, CUDA's naive in fp32.
constexpr double kCpuJudgeFlops = 0.2e9, kCpuJudgeBytes = 256e6;
constexpr double kCpuJudgeBytesTimed = 16e6;  // of a problem that is timed, since a machine with a GPU waits
constexpr size_t kGuardBytes = 256;

struct Case {
  const PassInfo* pass = nullptr;
  std::string problem;  // without the op
  DType dtype = DType::kF32;
  const Device* device = nullptr;
  std::string impl;  // "name" or "name:config"
  bool peer = false;
  uint64_t seed = 1;
  FillMode mode = FillMode::kExact;
  double cpu_judge_bytes = kCpuJudgeBytes;
  bool undefined = false;  // no guard bytes, outputs and workspace not filled: for compute-sanitizer

  std::string row() const;     // "conv2d_fwd/n2_h7_w9_c17_k17_r3/bf16/smem_tile"
  std::string repeat() const;  // the commands that repeat it
};

struct Verdict {
  bool ok = true;
  std::string message;  // why not: tensor, worst coordinate, got, wanted, how to repeat it
  // Of elements outside a rounding bound: the worst one's error over its bound. Infinite for all other
  // faults.
  double excess = std::numeric_limits<double>::infinity();
};

// Inputs of a problem and what the judge makes of them, both in fp32 (integers as they are).
struct Reference {
  HostTensors inputs, outputs;
  std::vector<double> rms;  // root mean square of each output; not finite where one of its elements is not
};

// Cached: cases of one problem, mode and seed share it (and, in exact mode, all dtypes).
std::shared_ptr<const Reference> judge(const Case& c);

// Runs the case once between guard bytes, on NaN outputs and a workspace of `garbage` bytes. Throws Error for
// a guard that was overwritten and for a launch that failed.
HostTensors run(const Case& c, const HostTensors& inputs, unsigned char garbage);

// What is wrong with which case, and how to repeat it.
Verdict wrong_verdict(const Case& c, const std::string& what);

// Every output against the judge's, element by element; `got` in the order of the pass's tensors.
Verdict compare(const Case& c, const std::vector<TensorView>& got, const Reference& want);

// The whole test of an implementation on a problem: exact data where a sum or a selection can be exact, real
// data, and twice the same bits (peers excepted). Turns Errors into verdicts.
Verdict check(Case c);

}  // namespace kiln
