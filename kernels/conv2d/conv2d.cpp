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
  out.flag("max2", pool).flag("arg2", pool_arg).flag("stats", stats).flag("acc", accumulate);
  return out.flag("drelu", dact == ActKind::kRelu).flag("drelu6", dact == ActKind::kRelu6).str();
}

std::vector<Conv2dProblem> Conv2dProblem::plainer() const {
  Conv2dProblem plain{.n = n, .h = h, .w = w, .c = c, .k = k, .r = r, .s = s};  // what is not kept is off
  plain.stride_h = stride_h;
  plain.stride_w = stride_w;
  plain.pad_h = pad_h;
  plain.pad_w = pad_w;
  plain.c_stride = c_stride;
  plain.dtype = dtype;
  Conv2dProblem with_bias = plain;
  with_bias.bias = true;
  std::vector<Conv2dProblem> list;
  if (bias && with_bias.str() != str()) list.push_back(with_bias);
  if (plain.str() != str()) list.push_back(plain);
  return list;
}

Conv2dProblem Conv2dProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("conv2d", text, {"n", "h", "w", "c", "k", "r", "st", "p", "cs"},
                         {"scale", "bias", "res", "relu", "relu6", "gelu", "silu", "max2", "arg2", "stats",
                          "acc", "drelu", "drelu6"});
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
  p.pool = in.flag("max2");
  p.pool_arg = in.flag("arg2");
  p.stats = in.flag("stats");
  p.accumulate = in.flag("acc");
  if (in.flag("drelu") && in.flag("drelu6")) {
    fail_problem("conv2d", std::string(text.substr(text.find(':') + 1)),
                 "has two activations to go back through, at most one goes");
  }
  p.dact = in.flag("drelu") ? ActKind::kRelu : in.flag("drelu6") ? ActKind::kRelu6 : ActKind::kNone;
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
  rule(!pool || (p() >= 2 && q() >= 2), "max2 needs an output of at least 2x2");
  rule(!pool_arg || pool, "arg2 are positions of max2");
  rule(!stats || !(scale || residual || act != ActKind::kNone || pool),
       "stats go with a bias at most: no scale, res, activation or max2");
  rule(dact == ActKind::kNone || dact == ActKind::kRelu || dact == ActKind::kRelu6,
       "dgrad goes back through relu and relu6 alone");
  rule(dact == ActKind::kNone || !has_epilogue(), "drelu is dgrad's, which takes no epilogue");
  rule(dact == ActKind::kNone || !accumulate, "drelu does not go with acc");
  require_indexable("conv2d", text, "x", {n, h, w, x_channels()});
  require_indexable("conv2d", text, "y", {n, p(), q(), k});
  require_indexable("conv2d", text, "w", {k, r, s, c});
}

namespace {

std::vector<int64_t> x_shape(const Conv2dProblem& p) { return {p.n, p.h, p.w, p.x_channels()}; }
std::vector<int64_t> y_shape(const Conv2dProblem& p) { return {p.n, p.y_h(), p.y_w(), p.k}; }
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
    fail_problem("conv2d", p.str(),
                 std::string(pass).append(" takes no scale, res, activation, max2 or stats"));
  }
}

void refuse_gate(const Conv2dProblem& p) {
  if (p.dact != ActKind::kNone) fail_problem("conv2d", p.str(), "drelu and drelu6 are dgrad's");
}

TensorSpec statistic(const Conv2dProblem& p, const char* name, Check check) {
  return {.name = name,
          .shape = {p.k},
          .role = out_if(p.stats),
          .check = check,
          .terms = 1.0 * p.n * p.p() * p.q()};
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
  refuse_gate(p);
  return {
      {.name = "x", .shape = x_shape(p), .dtype = p.dtype},
      {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
      {.name = "scale", .shape = {p.k}, .role = in_if(p.scale), .fill = Fill::kPositive},
      {.name = "bias", .shape = {p.k}, .role = in_if(p.bias)},
      {.name = "residual", .shape = {p.n, p.p(), p.q(), p.k}, .dtype = p.dtype, .role = in_if(p.residual)},
      y_tensor(p),
      {.name = "arg",
       .shape = {p.n, p.y_h(), p.y_w(), p.k / 4 + (p.k % 4 != 0)},
       .dtype = DType::kU8,
       .role = out_if(p.pool_arg),
       .check = Check::kPosition},
      statistic(p, "mean", Check::kMean),
      statistic(p, "var", Check::kVariance)};
}

double Conv2dFwd::compulsory_bytes(const Conv2dProblem& p) { return bytes_with_covered_x(p, tensors(p)); }

std::vector<TensorSpec> Conv2dDgrad::tensors(const Conv2dProblem& p) {
  refuse_epilogue(p, "dgrad");
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "w", .shape = w_shape(p), .dtype = p.dtype},
          {.name = "x",
           .shape = x_shape(p),
           .dtype = p.dtype,
           .role = in_if(p.dact != ActKind::kNone),
           .fill = Fill::kWide},
          {.name = "dx",
           .shape = x_shape(p),
           .dtype = p.dtype,
           .role = p.accumulate ? Role::kInOut : Role::kOut,
           .terms = 1.0 * p.k * p.r * p.s}};
}

std::vector<TensorSpec> Conv2dWgrad::tensors(const Conv2dProblem& p) {
  refuse_gate(p);
  refuse_epilogue(p, "wgrad");
  const double terms = 1.0 * p.n * p.p() * p.q();
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "x", .shape = x_shape(p), .dtype = p.dtype},
          {.name = "dw", .shape = w_shape(p), .role = Role::kOut, .terms = terms},
          {.name = "dbias", .shape = {p.k}, .role = out_if(p.bias), .terms = terms}};
}

double Conv2dWgrad::compulsory_bytes(const Conv2dProblem& p) { return bytes_with_covered_x(p, tensors(p)); }

}  // namespace kiln
