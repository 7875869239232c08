#include "kernels/optimizer/optimizer.h"

#include <cmath>
#include <cstring>

#include "kernels/common/problem_string.h"

namespace kiln {

namespace {

// What sgd and adamw share: a slab, of which the first part decays, and clipping.

template <class Problem>
void write_slab(ProblemWriter& out, const Problem& p) {
  out.field("n", p.n);
  if (p.decayed != 0) out.field("d", p.decayed);
}

template <class Problem>
void read_slab(const ProblemReader& in, DType dtype, Problem& p) {
  p.n = in.integer("n");
  p.decayed = in.integer("d", 0);
  p.weight_decay = static_cast<float>(in.real("wd", 0));
  p.clip = static_cast<float>(in.real("clip", 0));
  p.dtype = dtype;
}

void require_rule(std::string_view op, const std::string& text, bool holds, const char* what) {
  if (!holds) fail_problem(op, text, what);
}

template <class Problem>
void validate_slab(std::string_view op, const std::string& text, const Problem& p) {
  require_positive(op, text, "n", p.n);
  require_rule(op, text, p.decayed >= 0 && p.decayed <= p.n, "d must be 0 to n");
  require_rule(op, text, p.weight_decay >= 0 && std::isfinite(p.weight_decay),
               "wd must be finite and not negative");
  require_rule(op, text, p.clip >= 0 && std::isfinite(p.clip), "clip must be finite and not negative");
  require_rule(op, text, p.dtype == DType::kF32 || p.dtype == DType::kBF16, "dtype must be fp32 or bf16");
}

// step, grad, norm, param, the states, copy. terms: the longest chain of operations behind a new value.
template <class Problem>
std::vector<TensorSpec> slab_tensors(const Problem& p, double terms,
                                     std::initializer_list<std::pair<const char*, Fill>> states) {
  const auto slab = [&](const char* name, Role role, Fill fill = Fill::kReal) {
    return TensorSpec{
        .name = name, .shape = {p.n}, .role = role, .fill = fill, .check = Check::kReal, .terms = terms};
  };
  TensorSpec copy = slab("copy", p.dtype == DType::kBF16 ? Role::kOut : Role::kAbsent);
  copy.dtype = p.dtype;
  std::vector<TensorSpec> list = {
      {.name = "step", .shape = {sizeof(StepState)}, .dtype = DType::kU8, .fill = Fill::kDerived},
      slab("grad", Role::kIn),
      {.name = "norm", .shape = {1}, .role = p.clip > 0 ? Role::kIn : Role::kAbsent, .fill = Fill::kDerived},
      slab("param", Role::kInOut)};
  for (const auto& [name, fill] : states) list.push_back(slab(name, Role::kInOut, fill));
  list.push_back(copy);
  return list;
}

void derive_slab(const StepState& state, HostTensors& tensors) {
  std::memcpy(tensors[0].data.data(), &state, sizeof state);
  if (tensors[2].data.empty()) return;
  const HostTensor& grad = tensors[1];
  double sum = 0;
  for (int64_t i = 0; i < grad.spec.elements(); ++i) {
    sum += static_cast<double>(grad.as<float>()[i]) * grad.as<float>()[i];
  }
  *tensors[2].as<float>() = static_cast<float>(std::sqrt(sum));
}

}  // namespace

std::string SgdProblem::str() const {
  ProblemWriter out;
  write_slab(out, *this);
  if (momentum != 0) out.real("m", momentum);
  if (weight_decay != 0) out.real("wd", weight_decay);
  out.flag("nesterov", nesterov);
  if (clip != 0) out.real("clip", clip);
  return out.str();
}

SgdProblem SgdProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("sgd", text, {"n", "d", "m", "wd", "clip"}, {"nesterov"});
  SgdProblem p;
  read_slab(in, dtype, p);
  p.momentum = static_cast<float>(in.real("m", 0));
  p.nesterov = in.flag("nesterov");
  p.validate();
  return p;
}

void SgdProblem::validate() const {
  const std::string text = str();
  validate_slab("sgd", text, *this);
  require_rule("sgd", text, momentum >= 0 && momentum < 1, "m must be at least 0 and below 1");
  require_rule("sgd", text, !nesterov || momentum > 0, "nesterov needs m above 0");
}

std::vector<TensorSpec> SgdStep::tensors(const SgdProblem& p) {
  // Clipping, decay, momentum, Nesterov, step.
  return slab_tensors(p, 5, {{"velocity", Fill::kReal}});
}

void SgdStep::derive(const SgdProblem&, HostTensors& tensors) {
  StepState state;
  state.lr = 0.125f;
  derive_slab(state, tensors);
}

std::string AdamwProblem::str() const {
  const AdamwProblem usual;
  ProblemWriter out;
  write_slab(out, *this);
  if (beta1 != usual.beta1) out.real("ba", beta1);
  if (beta2 != usual.beta2) out.real("bb", beta2);
  if (eps != usual.eps) out.real("eps", eps);
  if (weight_decay != 0) out.real("wd", weight_decay);
  if (clip != 0) out.real("clip", clip);
  return out.str();
}

AdamwProblem AdamwProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("adamw", text, {"n", "d", "ba", "bb", "eps", "wd", "clip"}, {});
  AdamwProblem p;
  read_slab(in, dtype, p);
  p.beta1 = static_cast<float>(in.real("ba", p.beta1));
  p.beta2 = static_cast<float>(in.real("bb", p.beta2));
  p.eps = static_cast<float>(in.real("eps", p.eps));
  p.validate();
  return p;
}

void AdamwProblem::validate() const {
  const std::string text = str();
  validate_slab("adamw", text, *this);
  require_rule("adamw", text, beta1 >= 0 && beta1 < 1, "ba must be at least 0 and below 1");
  require_rule("adamw", text, beta2 >= 0 && beta2 < 1, "bb must be at least 0 and below 1");
  require_rule("adamw", text, eps >= 0 && std::isfinite(eps), "eps must be finite and not negative");
}

std::vector<TensorSpec> AdamwStep::tensors(const AdamwProblem& p) {
  // Clipping, decay, two averages and their corrections, root, quotient, step.
  return slab_tensors(p, 9, {{"first_moment", Fill::kReal}, {"second_moment", Fill::kPositive}});
}

void AdamwStep::derive(const AdamwProblem&, HostTensors& tensors) {
  StepState state;
  state.lr = 0.125f;
  state.step = 6;
  derive_slab(state, tensors);
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
