// What must hold for every implementation of an op, whatever the numbers are: the properties that
// tests/test_properties.cpp checks on random problems. No judge takes part: an implementation is held against
// itself and against the other passes of its op.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/execute.h"
#include "kernels/common/registry.h"

namespace kiln {

using RunImpl = std::function<HostTensors(const PassInfo&, const AnyProblem&, const Device&,
                                          std::string_view impl, const HostTensors& inputs)>;

// One random problem of one property.
struct Trial {
  std::string op;
  uint64_t seed = 1;
  DType dtype = DType::kF32;
  const Device* device = nullptr;
  RunImpl run;  // execute(), or in the test of the test something that is wrong
};

struct Property {
  std::string op, name;                // "conv2d", "adjoint"
  std::vector<std::string> passes;     // that it needs
  std::string (*check)(const Trial&);  // "" or what is wrong; throws Error where an implementation does
  int weight = 1;                      // share of the cases
};

std::vector<Property> product_properties();  // convolutions, linear, pooling, relu and add: exact
std::vector<Property> layer_properties();    // activations, softmax_xent, batchnorm
std::vector<Property> update_properties();   // optimizers, grad_norm, augment

// One pass of a trial's op on one problem: inputs in fp32 to look at and to change, and runs of every
// implementation.
class Probe {
 public:
  // Inputs are small integers -1, 0, 1 (`real`: normal data), derived ones as the pass derives them.
  Probe(const Trial& trial, const std::string& pass, const std::string& problem, bool real = false);

  HostTensor& in(std::string_view name);
  bool has(std::string_view name) const;   // and it is not absent
  std::vector<std::string> impls() const;  // kiln's own that support the problem
  HostTensors run(const std::string& impl) const;
  std::string label(const std::string& impl) const;  // "conv2d.fwd n2_h3... bf16 naive"
  // How far a stored integer v may be from the true one: 0 where v is small enough to be exact.
  double integer_rounding(std::string_view output, double v) const;
  double unit_rounding(std::string_view output) const;  // relative: 2^-8 for bf16, 2^-24 for fp32

 private:
  const TensorSpec& stored(std::string_view name) const;
  const Trial& trial_;
  const PassInfo& pass_;
  AnyProblem problem_;
  std::vector<TensorSpec> stored_;
  HostTensors inputs_;
};

const HostTensor& output(const HostTensors& tensors, std::string_view name);
HostTensor& output(HostTensors& tensors, std::string_view name);
double value(const HostTensor& tensor, int64_t i);
double dot(const HostTensor& a, const HostTensor& b);
std::string number(double value);
bool near(double got, double wanted, double tolerance);
std::string differs(const std::string& label, const std::string& what, double got, double wanted,
                    double tolerance);

constexpr double kFp32 = 0x1p-24;  // rounding of fp32
double growth(double terms);       // of the relative error of an fp32 sum: 16 sqrt(terms) + 64 roundings

}  // namespace kiln
