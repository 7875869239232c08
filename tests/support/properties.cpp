#include "tests/support/properties.h"

#include <cmath>
#include <sstream>

#include "kernels/common/error.h"
#include "tests/support/fill.h"

namespace kiln {
namespace {

size_t index_of(const HostTensors& tensors, std::string_view name) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].spec.name == name) return i;
  }
  fail_usage("no tensor '" + std::string(name) + "'");
}

// Integers -1, 0 and 1 of integers up to 3: long sums of their products stay exact in bf16 too.
void keep_signs(HostTensor& tensor) {
  if (tensor.spec.fill != Fill::kReal || tensor.spec.dtype != DType::kF32) return;
  float* values = tensor.as<float>();
  for (size_t i = 0; i < tensor.data.size() / sizeof(float); ++i) {
    values[i] = static_cast<float>((values[i] > 0) - (values[i] < 0));
  }
}

}  // namespace

Probe::Probe(const Trial& trial, const std::string& pass, const std::string& problem, bool real)
    : trial_(trial),
      pass_(find_pass(trial.op + "." + pass)),
      problem_(pass_.parse(problem, trial.dtype)),
      stored_(pass_.tensors(problem_)),
      inputs_(
          make_inputs(pass_, problem, trial.dtype, trial.seed, real ? FillMode::kReal : FillMode::kExact)) {
  if (real) return;
  for (HostTensor& tensor : inputs_) keep_signs(tensor);
  pass_.derive(pass_.parse(problem, DType::kF32), inputs_);
  for (size_t i = 0; i < inputs_.size(); ++i) {
    HostTensor& tensor = inputs_[i];
    if (tensor.spec.fill != Fill::kDerived || tensor.spec.dtype != DType::kF32) continue;
    round_values(stored_[i].dtype, tensor.as<float>(), tensor.spec.elements());
  }
}

HostTensor& Probe::in(std::string_view name) { return inputs_[index_of(inputs_, name)]; }

const TensorSpec& Probe::stored(std::string_view name) const { return stored_[index_of(inputs_, name)]; }

bool Probe::has(std::string_view name) const {
  for (const TensorSpec& spec : stored_) {
    if (spec.name == name) return spec.role != Role::kAbsent;
  }
  return false;
}

std::vector<std::string> Probe::impls() const {
  std::vector<std::string> names;
  for (const ImplInfo& impl : pass_.impls(trial_.device->kind)) {
    if (!impl.peer && pass_.supports(problem_, *trial_.device, impl.name)) names.push_back(impl.name);
  }
  return names;
}

HostTensors Probe::run(const std::string& impl) const {
  return trial_.run(pass_, problem_, *trial_.device, impl, inputs_);
}

std::string Probe::label(const std::string& impl) const {
  return pass_.id() + " " + problem_.text + " " + name_of(trial_.dtype) + " " + impl;
}

double Probe::integer_rounding(std::string_view output, double v) const {
  return stored(output).dtype == DType::kBF16 && std::abs(v) > 256 ? std::abs(v) / 256 : 0;
}

double Probe::unit_rounding(std::string_view output) const {
  return stored(output).dtype == DType::kBF16 ? 0x1p-8 : kFp32;
}

const HostTensor& output(const HostTensors& tensors, std::string_view name) {
  return tensors[index_of(tensors, name)];
}

HostTensor& output(HostTensors& tensors, std::string_view name) { return tensors[index_of(tensors, name)]; }

double value(const HostTensor& tensor, int64_t i) {
  switch (tensor.spec.dtype) {
    case DType::kU8:
      return tensor.data[static_cast<size_t>(i)];
    case DType::kI32:
      return tensor.as<int32_t>()[i];
    default:
      return tensor.as<float>()[i];
  }
}

double dot(const HostTensor& a, const HostTensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.spec.elements(); ++i) sum += value(a, i) * value(b, i);
  return sum;
}

std::string number(double value) {
  std::ostringstream text;
  text.precision(9);
  text << value;
  return text.str();
}

bool near(double got, double wanted, double tolerance) { return std::abs(got - wanted) <= tolerance; }

std::string differs(const std::string& label, const std::string& what, double got, double wanted,
                    double tolerance) {
  return label + ": " + what + " is " + number(got) + ", should be " + number(wanted) + " +- " +
         number(tolerance);
}

double growth(double terms) { return kFp32 * (16 * std::sqrt(terms) + 64); }

}  // namespace kiln
