#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

#include <tuple>

#include "kernels/common/problem_string.h"

namespace kiln {

std::string DepthwiseConv2dProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).pair("r", r, s);
  if (stride_h != 1 || stride_w != 1) out.pair("st", stride_h, stride_w);
  if (pad_h != r / 2 || pad_w != s / 2) out.pair("p", pad_h, pad_w);
  return out.flag("bias", bias).str();
}

std::vector<DepthwiseConv2dProblem> DepthwiseConv2dProblem::plainer() const {
  if (!bias) return {};
  DepthwiseConv2dProblem plain = *this;
  plain.bias = false;
  return {plain};
}

DepthwiseConv2dProblem DepthwiseConv2dProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("depthwise_conv2d", text, {"n", "h", "w", "c", "r", "st", "p"}, {"bias"});
  DepthwiseConv2dProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  std::tie(p.r, p.s) = in.pair("r");
  std::tie(p.stride_h, p.stride_w) = in.pair("st", {1, 1});
  std::tie(p.pad_h, p.pad_w) = in.pair("p", {p.r / 2, p.s / 2});
  p.bias = in.flag("bias");
  p.dtype = dtype;
  p.validate();
  return p;
}

void DepthwiseConv2dProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("depthwise_conv2d", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", n},
                                    {"h", h},
                                    {"w", w},
                                    {"c", c},
                                    {"r (height)", r},
                                    {"r (width)", s},
                                    {"st (height)", stride_h},
                                    {"st (width)", stride_w}}) {
    require_positive("depthwise_conv2d", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
  rule(pad_h >= 0 && pad_w >= 0, "padding must not be negative");
  rule(pad_h < r && pad_w < s, "padding must be smaller than the filter");
  rule(h + 2LL * pad_h >= r && w + 2LL * pad_w >= s, "the filter must not be larger than the padded input");
  rule(h + 2LL * pad_h + stride_h <= 2147483647LL && w + 2LL * pad_w + stride_w <= 2147483647LL,
       "height and width with padding and stride must stay below 2^31");
  require_indexable("depthwise_conv2d", text, "x", {n, h, w, c});
  require_indexable("depthwise_conv2d", text, "y", {n, p(), q(), c});
  require_indexable("depthwise_conv2d", text, "w", {r, s, c});
}

namespace {

std::vector<int64_t> x_shape(const DepthwiseConv2dProblem& p) { return {p.n, p.h, p.w, p.c}; }
std::vector<int64_t> y_shape(const DepthwiseConv2dProblem& p) { return {p.n, p.p(), p.q(), p.c}; }
std::vector<int64_t> w_shape(const DepthwiseConv2dProblem& p) { return {p.r, p.s, p.c}; }

}  // namespace

std::vector<TensorSpec> DepthwiseConv2dFwd::tensors(const DepthwiseConv2dProblem& p) {
  return {{.name = "x", .shape = x_shape(p), .dtype = p.dtype},
          {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
          {.name = "bias", .shape = {p.c}, .role = p.bias ? Role::kIn : Role::kAbsent},
          {.name = "y", .shape = y_shape(p), .dtype = p.dtype, .role = Role::kOut, .terms = 1.0 * p.r * p.s}};
}

std::vector<TensorSpec> DepthwiseConv2dDgrad::tensors(const DepthwiseConv2dProblem& p) {
  return {
      {.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
      {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
      {.name = "dx", .shape = x_shape(p), .dtype = p.dtype, .role = Role::kOut, .terms = 1.0 * p.r * p.s}};
}

std::vector<TensorSpec> DepthwiseConv2dWgrad::tensors(const DepthwiseConv2dProblem& p) {
  const double terms = 1.0 * p.n * p.p() * p.q();
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "x", .shape = x_shape(p), .dtype = p.dtype},
          {.name = "dw", .shape = w_shape(p), .role = Role::kOut, .terms = terms},
          {.name = "dbias", .shape = {p.c}, .role = p.bias ? Role::kOut : Role::kAbsent, .terms = terms}};
}

}  // namespace kiln
