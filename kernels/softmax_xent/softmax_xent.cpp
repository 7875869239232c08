#include "kernels/softmax_xent/softmax_xent.h"

#include "kernels/common/problem_string.h"

namespace kiln {
namespace {

TensorSpec logits(const SoftmaxXentProblem& p, const char* name, Role role) {
  return {.name = name,
          .shape = {p.n, p.c},
          .dtype = p.dtype,
          .role = role,
          .check = Check::kReal,
          .terms = static_cast<double>(p.c)};
}

}  // namespace

std::string SoftmaxXentProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("c", c);
  if (smoothing != 0) out.real("ls", smoothing);
  return out.str();
}

SoftmaxXentProblem SoftmaxXentProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("softmax_xent", text, {"n", "c", "ls"}, {});
  SoftmaxXentProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.c = static_cast<int>(in.integer("c"));
  p.smoothing = static_cast<float>(in.real("ls", 0));
  p.dtype = dtype;
  p.validate();
  return p;
}

void SoftmaxXentProblem::validate() const {
  const std::string text = str();
  require_positive("softmax_xent", text, "n", n);
  require_positive("softmax_xent", text, "c", c);
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    fail_problem("softmax_xent", text, "dtype must be fp32 or bf16");
  }
  if (!(smoothing >= 0 && smoothing <= 1)) fail_problem("softmax_xent", text, "ls must be within 0 and 1");
  require_indexable("softmax_xent", text, "x", {n, c});
}

std::vector<TensorSpec> SoftmaxXentFwd::tensors(const SoftmaxXentProblem& p) {
  // The count of correct rows shares its tensor with the loss; as a whole number below 2^24 it is exact
  // anyhow.
  return {logits(p, "x", Role::kIn),
          {.name = "labels", .shape = {p.n}, .dtype = DType::kI32, .fill = Fill::kLabels, .limit = p.c},
          {.name = "row_loss",
           .shape = {p.n},
           .role = Role::kOut,
           .check = Check::kReal,
           .terms = static_cast<double>(p.c)},
          {.name = "summary",
           .shape = {2},
           .role = Role::kOut,
           .check = Check::kReal,
           .terms = static_cast<double>(p.n)}};
}

std::vector<TensorSpec> SoftmaxXentFwdBwd::tensors(const SoftmaxXentProblem& p) {
  std::vector<TensorSpec> list = SoftmaxXentFwd::tensors(p);
  list.push_back(logits(p, "dx", Role::kOut));
  return list;
}

}  // namespace kiln
