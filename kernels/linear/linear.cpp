#include "kernels/linear/linear.h"

#include "kernels/common/problem_string.h"

namespace kiln {

std::string LinearProblem::str() const {
  return ProblemWriter()
      .field("n", n)
      .field("c", c)
      .field("k", k)
      .flag("bias", bias)
      .flag("f32out", f32_out)
      .str();
}

std::vector<LinearProblem> LinearProblem::plainer() const {
  if (!bias) return {};
  LinearProblem plain = *this;
  plain.bias = false;
  return {plain};
}

LinearProblem LinearProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("linear", text, {"n", "c", "k"}, {"bias", "f32out"});
  LinearProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.c = static_cast<int>(in.integer("c"));
  p.k = static_cast<int>(in.integer("k"));
  p.bias = in.flag("bias");
  p.f32_out = in.flag("f32out");
  p.dtype = dtype;
  p.validate();
  return p;
}

void LinearProblem::validate() const {
  const std::string text = str();
  for (const auto& [name, value] : {std::pair{"n", n}, {"c", c}, {"k", k}}) {
    require_positive("linear", text, name, value);
  }
  if (dtype != DType::kF32 && dtype != DType::kBF16)
    fail_problem("linear", text, "dtype must be fp32 or bf16");
  require_indexable("linear", text, "x", {n, c});
  require_indexable("linear", text, "y", {n, k});
  require_indexable("linear", text, "w", {k, c});
}

std::vector<TensorSpec> LinearFwd::tensors(const LinearProblem& p) {
  return {{.name = "x", .shape = {p.n, p.c}, .dtype = p.dtype},
          {.name = "w", .shape = {p.k, p.c}, .dtype = p.dtype},
          {.name = "bias", .shape = {p.k}, .role = p.bias ? Role::kIn : Role::kAbsent},
          {.name = "y", .shape = {p.n, p.k}, .dtype = p.out_dtype(), .role = Role::kOut, .terms = 1.0 * p.c}};
}

std::vector<TensorSpec> LinearDgrad::tensors(const LinearProblem& p) {
  return {
      {.name = "dy", .shape = {p.n, p.k}, .dtype = p.dtype},
      {.name = "w", .shape = {p.k, p.c}, .dtype = p.dtype},
      {.name = "dx", .shape = {p.n, p.c}, .dtype = p.out_dtype(), .role = Role::kOut, .terms = 1.0 * p.k}};
}

std::vector<TensorSpec> LinearWgrad::tensors(const LinearProblem& p) {
  return {{.name = "dy", .shape = {p.n, p.k}, .dtype = p.dtype},
          {.name = "x", .shape = {p.n, p.c}, .dtype = p.dtype},
          {.name = "dw", .shape = {p.k, p.c}, .role = Role::kOut, .terms = 1.0 * p.n},
          {.name = "dbias", .shape = {p.k}, .role = p.bias ? Role::kOut : Role::kAbsent, .terms = 1.0 * p.n}};
}

}  // namespace kiln
