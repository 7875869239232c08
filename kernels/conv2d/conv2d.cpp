#include "kernels/conv2d/conv2d.h"

#include "kernels/common/problem_string.h"
#include "kernels/common/window.h"

namespace kiln {

std::string Conv2dProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).field("k", k).pair("r", r, s);
  if (stride_h != 1 || stride_w != 1) out.pair("st", stride_h, stride_w);
  if (pad_h != r / 2 || pad_w != s / 2) out.pair("p", pad_h, pad_w);
  if (c_stride) out.field("cs", c_stride);
  out.flag("scale", scale).flag("bias", bias).flag("res", residual);
  for (const auto& [value, name] : kActNames) out.flag(name, act == value);
  return out.flag("acc", accumulate).str();
}

Conv2dProblem Conv2dProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("conv2d", text, {"n", "h", "w", "c", "k", "r", "st", "p", "cs"},
                         {"scale", "bias", "res", "relu", "relu6", "gelu", "silu", "acc"});
  Conv2dProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  p.k = static_cast<int>(in.integer("k"));
  std::tie(p.r, p.s) = in.pair("r");
  std::tie(p.stride_h, p.stride_w) = in.pair("st", {1, 1});
  std::tie(p.pad_h, p.pad_w) = in.pair("p", {p.r / 2, p.s / 2});
  p.c_stride = static_cast<int>(in.integer("cs", 0));
  p.scale = in.flag("scale");
  p.bias = in.flag("bias");
  p.residual = in.flag("res");
  for (const auto& [value, name] : kActNames) {
    if (!in.flag(name)) continue;
    if (p.act != ActKind::kNone) {
      fail_problem("conv2d", std::string(text.substr(text.find(':') + 1)),
                   "has two activations, at most one goes");
    }
    p.act = value;
  }
  p.accumulate = in.flag("acc");
  p.dtype = dtype;
  p.validate();
  return p;
}

void Conv2dProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("conv2d", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", n},
                                    {"h", h},
                                    {"w", w},
                                    {"c", c},
                                    {"k", k},
                                    {"r (height)", r},
                                    {"r (width)", s},
                                    {"st (height)", stride_h},
                                    {"st (width)", stride_w}}) {
    require_positive("conv2d", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kTF32 || dtype == DType::kBF16,
       "dtype must be fp32, tf32 or bf16");
  rule(pad_h >= 0 && pad_w >= 0, "padding must not be negative");
  rule(pad_h < r && pad_w < s, "padding must be smaller than the filter");
  rule(h + 2LL * pad_h >= r && w + 2LL * pad_w >= s, "the filter must not be larger than the padded input");
  rule(c_stride == 0 || c_stride >= c, "cs must be at least c");
  rule(!accumulate || x_channels() == c, "acc needs cs = c");
  rule(!accumulate || !has_epilogue(), "acc is dgrad's, which takes no epilogue");
  require_indexable("conv2d", text, "x", {n, h, w, x_channels()});
  require_indexable("conv2d", text, "y", {n, p(), q(), k});
  require_indexable("conv2d", text, "w", {k, r, s, c});
}

namespace {

std::vector<int64_t> x_shape(const Conv2dProblem& p) { return {p.n, p.h, p.w, p.x_channels()}; }
std::vector<int64_t> y_shape(const Conv2dProblem& p) { return {p.n, p.p(), p.q(), p.k}; }
std::vector<int64_t> w_shape(const Conv2dProblem& p) { return {p.k, p.r, p.s, p.c}; }
double bytes_of(const TensorSpec& spec) {
  return spec.role == Role::kAbsent ? 0 : static_cast<double>(spec.bytes());
}

// Everything once, of x the pixels that filters cover.
double bytes_with_covered_x(const Conv2dProblem& p, const std::vector<TensorSpec>& tensors) {
  double bytes = 0;
  for (const TensorSpec& spec : tensors) {
    bytes += bytes_of(spec) * (spec.name == "x" ? covered_pixels(p) / (1.0 * p.h * p.w) : 1);
  }
  return bytes;
}

Role in_if(bool present) { return present ? Role::kIn : Role::kAbsent; }
Role out_if(bool present) { return present ? Role::kOut : Role::kAbsent; }

// The gradients' tensors are those of the plain convolution: nothing falls back to it without a word.
void refuse_epilogue(const Conv2dProblem& p, const char* pass) {
  if (p.has_epilogue()) {
    fail_problem("conv2d", p.str(), std::string(pass).append(" takes no scale, res or activation"));
  }
}

// y of the fused forward: the sum may be doubled by the exact data's scale, and its error by the real one's.
TensorSpec y_tensor(const Conv2dProblem& p) {
  const double terms = 1.0 * p.c * p.r * p.s;
  return {.name = "y",
          .shape = y_shape(p),
          .dtype = p.dtype,
          .role = Role::kOut,
          .check = is_smooth(p.act) ? Check::kReal : Check::kSum,
          .terms = p.has_epilogue() ? (p.scale ? 2 : 1) * terms + 1 : terms,
          .magnitude = p.scale ? 1.5 : 1.0};
}

}  // namespace

std::vector<TensorSpec> Conv2dFwd::tensors(const Conv2dProblem& p) {
  return {{.name = "x", .shape = x_shape(p), .dtype = p.dtype},
          {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
          {.name = "scale", .shape = {p.k}, .role = in_if(p.scale), .fill = Fill::kPositive},
          {.name = "bias", .shape = {p.k}, .role = in_if(p.bias)},
          {.name = "residual", .shape = y_shape(p), .dtype = p.dtype, .role = in_if(p.residual)},
          y_tensor(p)};
}

double Conv2dFwd::compulsory_bytes(const Conv2dProblem& p) { return bytes_with_covered_x(p, tensors(p)); }

std::vector<TensorSpec> Conv2dDgrad::tensors(const Conv2dProblem& p) {
  refuse_epilogue(p, "dgrad");
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
          {.name = "dx",
           .shape = x_shape(p),
           .dtype = p.dtype,
           .role = p.accumulate ? Role::kInOut : Role::kOut,
           .terms = 1.0 * p.k * p.r * p.s}};
}

std::vector<TensorSpec> Conv2dWgrad::tensors(const Conv2dProblem& p) {
  refuse_epilogue(p, "wgrad");
  const double terms = 1.0 * p.n * p.p() * p.q();
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "x", .shape = x_shape(p), .dtype = p.dtype},
          {.name = "dw", .shape = w_shape(p), .role = Role::kOut, .terms = terms},
          {.name = "dbias", .shape = {p.k}, .role = out_if(p.bias), .terms = terms}};
}

double Conv2dWgrad::compulsory_bytes(const Conv2dProblem& p) { return bytes_with_covered_x(p, tensors(p)); }

}  // namespace kiln
