#include "kernels/batchnorm/batchnorm.h"

#include <cmath>
#include <utility>

#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"

namespace kiln {
namespace {

constexpr std::pair<BatchnormAct, const char*> kActs[] = {{BatchnormAct::kRelu, "relu"},
                                                          {BatchnormAct::kRelu6, "relu6"},
                                                          {BatchnormAct::kGelu, "gelu"},
                                                          {BatchnormAct::kSilu, "silu"}};

TensorSpec image(const BatchnormProblem& p, const char* name, Role role = Role::kIn) {
  return {.name = name,
          .shape = {p.n, p.h, p.w, p.c},
          .dtype = p.dtype,
          .role = role,
          .check = Check::kReal,
          .terms = static_cast<double>(p.per_channel())};
}

TensorSpec channel(const BatchnormProblem& p, const char* name, Role role = Role::kIn,
                   Fill fill = Fill::kReal) {
  return {.name = name,
          .shape = {p.c},
          .role = role,
          .fill = fill,
          .check = Check::kReal,
          .terms = static_cast<double>(p.per_channel())};
}

// dx is rstd times a difference of gradients. Few values a channel may lie close together, and rstd reaches
// 1/sqrt(eps). Of two values the difference is 0 but for eps: the terms are 1/(eps * rstd^2) times what
// remains.
TensorSpec input_gradient(const BatchnormProblem& p) {
  TensorSpec spec = image(p, "dx", Role::kOut);
  const long long m = p.per_channel();
  spec.magnitude = m >= 16 ? 4.0 : m == 2 ? 1.0 / p.eps : 1.0 / std::sqrt(p.eps);
  return spec;
}

TensorSpec residual(const BatchnormProblem& p) {
  return image(p, "residual", p.residual ? Role::kIn : Role::kAbsent);
}

// Read by backward, written by forward: `present` says which. Bits of no channel are 0.
TensorSpec mask(const BatchnormProblem& p, Role present) {
  return {.name = "mask",
          .shape = {p.n, p.h, p.w, p.mask_bytes_per_pixel()},
          .dtype = DType::kU8,
          .role = p.masked() ? present : Role::kAbsent,
          .fill = Fill::kDerived,
          .limit = p.act == BatchnormAct::kRelu6 ? 6 : 0,
          .check = Check::kMask};
}

// A selection of dy.
TensorSpec residual_gradient(const BatchnormProblem& p) {
  TensorSpec spec = image(p, "dresidual", p.masked() ? Role::kOut : Role::kAbsent);
  spec.check = Check::kExact;
  return spec;
}

}  // namespace

std::string BatchnormProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).flag("res", residual);
  for (const auto& [value, name] : kActs) out.flag(name, act == value);
  const BatchnormProblem defaults;
  if (eps != defaults.eps) out.real("eps", eps);
  if (momentum != defaults.momentum) out.real("mom", momentum);
  return out.str();
}

BatchnormProblem BatchnormProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("batchnorm", text, {"n", "h", "w", "c", "eps", "mom"},
                         {"res", "relu", "relu6", "gelu", "silu"});
  BatchnormProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h", 1));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  p.residual = in.flag("res");
  for (const auto& [value, name] : kActs) {
    if (!in.flag(name)) continue;
    if (p.act != BatchnormAct::kNone) {
      fail_problem("batchnorm", std::string(text.substr(text.find(':') + 1)),
                   "has two activations, at most one goes");
    }
    p.act = value;
  }
  if (in.has("eps")) p.eps = static_cast<float>(in.real("eps", 0));
  if (in.has("mom")) p.momentum = static_cast<float>(in.real("mom", 0));
  p.dtype = dtype;
  p.validate();
  return p;
}

void BatchnormProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("batchnorm", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", n}, {"h", h}, {"w", w}, {"c", c}}) {
    require_positive("batchnorm", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
  rule(eps > 0 && std::isfinite(eps), "eps must be positive and finite");
  rule(momentum >= 0 && momentum <= 1, "mom must be within 0 and 1");
  rule(!residual || act == BatchnormAct::kNone || act == BatchnormAct::kRelu || act == BatchnormAct::kRelu6,
       "a residual goes with no activation, relu or relu6");
  require_indexable("batchnorm", text, "x", {n, h, w, c});
}

std::vector<TensorSpec> BatchnormFwdTrain::tensors(const BatchnormProblem& p) {
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          residual(p),
          channel(p, "running_mean", Role::kInOut),
          channel(p, "running_var", Role::kInOut, Fill::kPositive),
          image(p, "y", Role::kOut),
          channel(p, "saved_mean", Role::kOut),
          channel(p, "saved_rstd", Role::kOut),
          mask(p, Role::kOut)};
}

std::vector<TensorSpec> BatchnormFwdApply::tensors(const BatchnormProblem& p) {
  TensorSpec y = image(p, "y", Role::kOut);
  y.terms = 1;
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "mean"),
          channel(p, "rstd", Role::kIn, Fill::kPositive),
          residual(p),
          y};
}

std::vector<TensorSpec> BatchnormFwdInfer::tensors(const BatchnormProblem& p) {
  TensorSpec y = image(p, "y", Role::kOut);
  y.terms = 1;
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "running_mean"),
          channel(p, "running_var", Role::kIn, Fill::kPositive),
          residual(p),
          y};
}

std::vector<TensorSpec> BatchnormBwd::tensors(const BatchnormProblem& p) {
  return {image(p, "dy"),
          image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "saved_mean", Role::kIn, Fill::kDerived),
          channel(p, "saved_rstd", Role::kIn, Fill::kDerived),
          mask(p, Role::kIn),
          input_gradient(p),
          channel(p, "dgamma", Role::kOut),
          channel(p, "dbeta", Role::kOut),
          residual_gradient(p)};
}

void BatchnormBwd::derive(const BatchnormProblem& p, HostTensors& tensors) {
  const float* x = tensors[1].as<float>();     // [N,H,W,C]
  float* saved_mean = tensors[4].as<float>();  // [C]
  float* saved_rstd = tensors[5].as<float>();  // [C]
  const long long m = p.per_channel();
  std::vector<double> mean(p.c), m2(p.c);
  for (long long i = 0; i < m * p.c; ++i) mean[i % p.c] += x[i];
  for (int c = 0; c < p.c; ++c) mean[c] /= static_cast<double>(m);
  for (long long i = 0; i < m * p.c; ++i) m2[i % p.c] += (x[i] - mean[i % p.c]) * (x[i] - mean[i % p.c]);
  for (int c = 0; c < p.c; ++c) {
    saved_mean[c] = static_cast<float>(mean[c]);
    saved_rstd[c] = static_cast<float>(1.0 / std::sqrt(m2[c] / static_cast<double>(m) + p.eps));
  }
  if (!p.masked()) return;
  unsigned char* bits = tensors[6].data.data();  // [N,H,W,ceil(C/8)]
  const int row = p.mask_bytes_per_pixel();
  const unsigned char last = static_cast<unsigned char>(0xff >> (8 * row - p.c));
  for (long long i = 0; i < m * row; ++i) {
    const Philox4 draw = philox(1, PhiloxStream::kTest, static_cast<uint64_t>(i));
    bits[i] = static_cast<unsigned char>(draw.v[0] >> 24);
    if (i % row == row - 1) bits[i] &= last;
  }
}

}  // namespace kiln
