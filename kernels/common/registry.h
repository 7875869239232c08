// All compiled passes behind one untyped interface, for tests, benchmarks and `kiln op`. The engine uses the
// typed one (impl_choice.h).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

// A problem of any op.
struct AnyProblem {
  std::shared_ptr<const void> value;
  std::string text;  // "n512_h32_w32_c64", without the op
  DType dtype = DType::kF32;
};

struct AnyPlan {
  size_t workspace_bytes = 0;
  // One pointer a TensorSpec, in order; null for absent tensors.
  std::function<Bound(std::span<void* const> tensors, void* workspace)> bind;
};

struct ImplInfo {
  std::string name;
  bool peer;
};

// One pass of one op.
struct PassInfo {
  std::string op, pass;
  std::string id() const { return op + "." + pass; }          // "conv2d.fwd"
  std::string row_prefix() const { return op + "_" + pass; }  // "conv2d_fwd"

  // Throws Error for a bad string, shape or dtype. The text may begin with "<op>:".
  std::function<AnyProblem(std::string_view text, DType dtype)> parse;
  std::function<std::vector<TensorSpec>(const AnyProblem&)> tensors;
  std::function<double(const AnyProblem&)> flops;  // of this pass, taps on padding included
  std::function<double(const AnyProblem&)>
      compulsory_bytes;                                    // every input read once, every output written once
  std::function<std::vector<ImplInfo>(DeviceKind)> impls;  // best to naive, peers last
  std::function<Support(const AnyProblem&, const Device&, std::string_view impl)> supports;
  // What is worth trying: every implementation of kiln's own that supports the problem, as "name" and, where
  // it has configs, as "name:config"; best guess first.
  std::function<std::vector<std::string>(const AnyProblem&, const Device&)> choices;
  // impl: "name" or "name:config". Throws Error where it is unknown or does not support the problem.
  std::function<AnyPlan(const AnyProblem&, const Device&, std::string_view impl)> plan;
  // Fills the inputs with Fill::kDerived of a dtype fp32 problem from the others (all inputs are filled
  // before).
  std::function<void(const AnyProblem&, HostTensors&)> derive;
  // The bytes that a Check::kOwn output must be, one pointer a tensor: inputs in fp32, outputs as the run
  // stored them. Null where the pass has no such output.
  std::function<std::vector<unsigned char>(const AnyProblem&, const std::vector<const void*>&)> positions;
};

const std::vector<PassInfo>& all_passes();
// "conv2d.fwd"; throws Error suggesting the nearest.
const PassInfo& find_pass(std::string_view id);
// The same, or null where it is not in this build.
const PassInfo* built_pass(std::string_view id);

}  // namespace kiln
