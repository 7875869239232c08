// The one table of problems: tests, bench_layers and their names come from here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/registry.h"

namespace kiln {

struct NamedProblem {
  std::string label;   // "resnet18.layer1.0.conv1", or "conv2d.tail" for a made-up one
  std::string op;      // "conv2d"
  std::string text;    // "n512_h32_w32_c64_k64_r3"
  std::string passes;  // comma-separated; "" means every pass of the op
  bool has_pass(std::string_view pass) const;
};

// peers: the rows of the comparison with vendor libraries. nets: all layers of the built-in networks at batch
// 512, each shape once (the label counts the layers that share it). full: peers, and the layers at batch 128,
// 512 and 2000. test: small problems, below 0.1 GMAC each.
enum class Suite { kPeers, kNets, kFull, kTest };
Suite suite_from_name(std::string_view name);  // "peers", "nets", "full", "test"; throws Error

// Problems of all ops, compiled in or not.
const std::vector<NamedProblem>& suite_problems(Suite suite);

// The same problem at another batch size.
std::string with_batch(const std::string& text, long long n);

// All layers of a built-in network's forward, backward and update at a batch size.
std::vector<NamedProblem> network_problems(std::string_view network, long long batch);

// What registration uses for CUDA, so that a machine without a GPU registers the same cases as an H100.
const Device& nominal_cuda_device();

// One implementation on one problem.
struct ImplCase {
  const PassInfo* pass;
  NamedProblem problem;
  DType dtype;
  DeviceKind device;
  ImplInfo impl;
  std::string name() const;  // "smem_tile/bf16/n2_h7_w9_c17_k17_r3"
};

// Every implementation that supports a problem, problem by problem: those of the test suite, or those given.
// ops: which, {} for all compiled.
std::vector<ImplCase> test_cases(const std::vector<std::string>& ops);
std::vector<ImplCase> test_cases(const std::vector<std::string>& ops,
                                 const std::vector<NamedProblem>& problems);

}  // namespace kiln
