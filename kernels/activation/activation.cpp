#include "kernels/activation/activation.h"

#include "kernels/common/problem_string.h"

namespace kiln {
namespace {

template <class Problem>
Problem parse_elementwise(std::string_view op, std::string_view text, DType dtype) {
  const ProblemReader in(op, text, {"n", "h", "w", "c"}, {});
  Problem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h", 1));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c", 1));
  p.dtype = dtype;
  p.validate(op);
  return p;
}

TensorSpec tensor(const ElementwiseProblem& p, const char* name, Role role, Check check,
                  Fill fill = Fill::kReal) {
  return {.name = name,
          .shape = {p.n, p.h, p.w, p.c},
          .dtype = p.dtype,
          .role = role,
          .fill = fill,
          .check = check};
}

// An output that is rounded from `terms` terms of about its own size.
TensorSpec rounded(const ElementwiseProblem& p, const char* name, double terms) {
  TensorSpec spec = tensor(p, name, Role::kOut, Check::kReal);
  spec.terms = terms;
  return spec;
}

// x -> y of an op that selects.
std::vector<TensorSpec> selecting_fwd(const ElementwiseProblem& p, Fill fill = Fill::kReal) {
  return {tensor(p, "x", Role::kIn, Check::kExact, fill), tensor(p, "y", Role::kOut, Check::kExact)};
}
std::vector<TensorSpec> selecting_bwd(const ElementwiseProblem& p, Fill fill = Fill::kReal) {
  return {tensor(p, "dy", Role::kIn, Check::kExact), tensor(p, "y", Role::kIn, Check::kExact, fill),
          tensor(p, "dx", Role::kOut, Check::kExact)};
}

// gelu and silu: x times a function of x, and dy times a slope that has two terms.
std::vector<TensorSpec> smooth_fwd(const ElementwiseProblem& p) {
  return {tensor(p, "x", Role::kIn, Check::kReal), rounded(p, "y", 1)};
}
std::vector<TensorSpec> smooth_bwd(const ElementwiseProblem& p) {
  return {tensor(p, "dy", Role::kIn, Check::kReal), tensor(p, "x", Role::kIn, Check::kReal),
          rounded(p, "dx", 2)};
}

}  // namespace

std::string ElementwiseProblem::str() const {
  return ProblemWriter().field("n", n).field("h", h).field("w", w).field("c", c).str();
}

void ElementwiseProblem::validate(std::string_view op) const {
  const std::string text = str();
  for (const auto& [name, value] : {std::pair{"n", n}, {"h", h}, {"w", w}, {"c", c}}) {
    require_positive(op, text, name, value);
  }
  if (dtype != DType::kF32 && dtype != DType::kBF16) fail_problem(op, text, "dtype must be fp32 or bf16");
  require_indexable(op, text, "x", {n, h, w, c});
}

ReluProblem ReluProblem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<ReluProblem>("relu", text, dtype);
}
Relu6Problem Relu6Problem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<Relu6Problem>("relu6", text, dtype);
}
GeluProblem GeluProblem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<GeluProblem>("gelu", text, dtype);
}
SiluProblem SiluProblem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<SiluProblem>("silu", text, dtype);
}
AddProblem AddProblem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<AddProblem>("add", text, dtype);
}

std::vector<TensorSpec> ReluFwd::tensors(const ReluProblem& p) { return selecting_fwd(p); }
std::vector<TensorSpec> ReluBwd::tensors(const ReluProblem& p) { return selecting_bwd(p); }
std::vector<TensorSpec> Relu6Fwd::tensors(const Relu6Problem& p) { return selecting_fwd(p, Fill::kWide); }
std::vector<TensorSpec> Relu6Bwd::tensors(const Relu6Problem& p) { return selecting_bwd(p, Fill::kWide); }
std::vector<TensorSpec> GeluFwd::tensors(const GeluProblem& p) { return smooth_fwd(p); }
std::vector<TensorSpec> GeluBwd::tensors(const GeluProblem& p) { return smooth_bwd(p); }
std::vector<TensorSpec> SiluFwd::tensors(const SiluProblem& p) { return smooth_fwd(p); }
std::vector<TensorSpec> SiluBwd::tensors(const SiluProblem& p) { return smooth_bwd(p); }

std::vector<TensorSpec> AddFwd::tensors(const AddProblem& p) {
  return {tensor(p, "a", Role::kIn, Check::kSum), tensor(p, "b", Role::kIn, Check::kSum),
          tensor(p, "y", Role::kOut, Check::kSum)};
}
std::vector<TensorSpec> AddBwd::tensors(const AddProblem& p) {
  return {tensor(p, "dy", Role::kIn, Check::kExact), tensor(p, "da", Role::kOut, Check::kExact),
          tensor(p, "db", Role::kOut, Check::kExact)};
}

}  // namespace kiln
