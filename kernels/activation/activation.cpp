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

TensorSpec tensor(const ElementwiseProblem& p, const char* name, Role role, Check check) {
  return {.name = name, .shape = {p.n, p.h, p.w, p.c}, .dtype = p.dtype, .role = role, .check = check};
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
AddProblem AddProblem::parse(std::string_view text, DType dtype) {
  return parse_elementwise<AddProblem>("add", text, dtype);
}

std::vector<TensorSpec> ReluFwd::tensors(const ReluProblem& p) {
  return {tensor(p, "x", Role::kIn, Check::kExact), tensor(p, "y", Role::kOut, Check::kExact)};
}
std::vector<TensorSpec> ReluBwd::tensors(const ReluProblem& p) {
  return {tensor(p, "dy", Role::kIn, Check::kExact), tensor(p, "y", Role::kIn, Check::kExact),
          tensor(p, "dx", Role::kOut, Check::kExact)};
}
std::vector<TensorSpec> AddFwd::tensors(const AddProblem& p) {
  return {tensor(p, "a", Role::kIn, Check::kSum), tensor(p, "b", Role::kIn, Check::kSum),
          tensor(p, "y", Role::kOut, Check::kSum)};
}
std::vector<TensorSpec> AddBwd::tensors(const AddProblem& p) {
  return {tensor(p, "dy", Role::kIn, Check::kExact), tensor(p, "da", Role::kOut, Check::kExact),
          tensor(p, "db", Role::kOut, Check::kExact)};
}

}  // namespace kiln
