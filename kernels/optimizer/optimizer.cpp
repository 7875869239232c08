#include "kernels/optimizer/optimizer.h"

#include <cmath>
#include <cstring>

#include "kernels/common/problem_string.h"

namespace kiln {

std::string SgdProblem::str() const {
  ProblemWriter out;
  out.field("n", n);
  if (decayed != 0) out.field("d", decayed);
  if (momentum != 0) out.real("m", momentum);
  if (weight_decay != 0) out.real("wd", weight_decay);
  return out.flag("nesterov", nesterov).str();
}

SgdProblem SgdProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("sgd", text, {"n", "d", "m", "wd"}, {"nesterov"});
  SgdProblem p;
  p.n = in.integer("n");
  p.decayed = in.integer("d", 0);
  p.momentum = static_cast<float>(in.real("m", 0));
  p.weight_decay = static_cast<float>(in.real("wd", 0));
  p.nesterov = in.flag("nesterov");
  p.dtype = dtype;
  p.validate();
  return p;
}

void SgdProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("sgd", text, what);
  };
  require_positive("sgd", text, "n", n);
  rule(decayed >= 0 && decayed <= n, "d must be 0 to n");
  rule(momentum >= 0 && momentum < 1, "m must be at least 0 and below 1");
  rule(weight_decay >= 0 && std::isfinite(weight_decay), "wd must be finite and not negative");
  rule(!nesterov || momentum > 0, "nesterov needs m above 0");
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
}

std::vector<TensorSpec> SgdStep::tensors(const SgdProblem& p) {
  // The longest chain behind a new parameter: decay, momentum, Nesterov, step.
  constexpr double kTerms = 4;
  const auto slab = [&](const char* name, Role role) {
    return TensorSpec{.name = name, .shape = {p.n}, .role = role, .check = Check::kReal, .terms = kTerms};
  };
  TensorSpec copy = slab("copy", p.dtype == DType::kBF16 ? Role::kOut : Role::kAbsent);
  copy.dtype = p.dtype;
  return {{.name = "step", .shape = {sizeof(StepState)}, .dtype = DType::kU8, .fill = Fill::kDerived},
          slab("grad", Role::kIn),
          slab("param", Role::kInOut),
          slab("velocity", Role::kInOut),
          copy};
}

void SgdStep::derive(const SgdProblem&, HostTensors& tensors) {
  StepState state;
  state.lr = 0.125f;
  std::memcpy(tensors[0].data.data(), &state, sizeof state);
}

std::string GradNormProblem::str() const { return ProblemWriter().field("n", n).str(); }

GradNormProblem GradNormProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("grad_norm", text, {"n"}, {});
  GradNormProblem p;
  p.n = in.integer("n");
  p.dtype = dtype;
  p.validate();
  return p;
}

void GradNormProblem::validate() const {
  require_positive("grad_norm", str(), "n", n);
  if (dtype != DType::kF32) fail_problem("grad_norm", str(), "dtype must be fp32: gradients are");
}

std::vector<TensorSpec> GradNorm::tensors(const GradNormProblem& p) {
  // Few terms whatever n: partial sums are doubles, so that only the last rounding and the root are left.
  return {{.name = "grad", .shape = {p.n}},
          {.name = "norm", .shape = {1}, .role = Role::kOut, .check = Check::kReal, .terms = 4}};
}

}  // namespace kiln
