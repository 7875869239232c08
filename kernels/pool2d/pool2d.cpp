#include "kernels/pool2d/pool2d.h"

#include <algorithm>
#include <tuple>

#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"

namespace kiln {

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_naive;

std::string MaxPool2dProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).pair("r", r, s);
  out.pair("st", stride_h, stride_w).pair("p", pad_h, pad_w);
  return out.flag("arg8", arg == PoolArg::kArg8).str();
}

MaxPool2dProblem MaxPool2dProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("max_pool2d", text, {"n", "h", "w", "c", "r", "st", "p"}, {"arg8"});
  MaxPool2dProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  std::tie(p.r, p.s) = in.pair("r");
  std::tie(p.stride_h, p.stride_w) = in.pair("st", {p.r, p.s});
  std::tie(p.pad_h, p.pad_w) = in.pair("p", {0, 0});
  p.arg = in.flag("arg8") ? PoolArg::kArg8 : PoolArg::kNone;
  p.dtype = dtype;
  p.validate();
  return p;
}

void MaxPool2dProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("max_pool2d", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", n},
                                    {"h", h},
                                    {"w", w},
                                    {"c", c},
                                    {"r (height)", r},
                                    {"r (width)", s},
                                    {"st (height)", stride_h},
                                    {"st (width)", stride_w}}) {
    require_positive("max_pool2d", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
  rule(pad_h >= 0 && pad_w >= 0, "padding must not be negative");
  // With this every window holds at least one element of the image.
  rule(pad_h <= r / 2 && pad_w <= s / 2, "padding must be at most half of the window");
  rule(h + 2LL * pad_h >= r && w + 2LL * pad_w >= s, "the window must not be larger than the padded input");
  rule(h + 2LL * pad_h + stride_h <= 2147483647LL && w + 2LL * pad_w + stride_w <= 2147483647LL,
       "height and width with padding and stride must stay below 2^31");
  rule(arg != PoolArg::kArg8 || 1LL * r * s <= 256, "arg8 needs a window of at most 256 elements");
  require_indexable("max_pool2d", text, "x", {n, h, w, c});
  require_indexable("max_pool2d", text, "y", {n, p(), q(), c});
}

std::string GlobalAvgPoolProblem::str() const {
  return ProblemWriter().field("n", n).field("h", h).field("w", w).field("c", c).str();
}

GlobalAvgPoolProblem GlobalAvgPoolProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("global_avg_pool", text, {"n", "h", "w", "c"}, {});
  GlobalAvgPoolProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  p.dtype = dtype;
  p.validate();
  return p;
}

void GlobalAvgPoolProblem::validate() const {
  const std::string text = str();
  for (const auto& [name, value] : {std::pair{"n", n}, {"h", h}, {"w", w}, {"c", c}}) {
    require_positive("global_avg_pool", text, name, value);
  }
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    fail_problem("global_avg_pool", text, "dtype must be fp32 or bf16");
  }
  require_indexable("global_avg_pool", text, "x", {n, h, w, c});
}

namespace {

std::vector<int64_t> x_shape(const MaxPool2dProblem& p) { return {p.n, p.h, p.w, p.c}; }
std::vector<int64_t> y_shape(const MaxPool2dProblem& p) { return {p.n, p.p(), p.q(), p.c}; }

// The most windows along one side that share an element.
int overlap(int window, int stride) { return (window + stride - 1) / stride; }

}  // namespace

std::vector<TensorSpec> MaxPool2dFwd::tensors(const MaxPool2dProblem& p) {
  const Role arg_role = p.arg == PoolArg::kArg8 ? Role::kOut : Role::kAbsent;
  return {
      {.name = "x", .shape = x_shape(p), .dtype = p.dtype},
      {.name = "y", .shape = y_shape(p), .dtype = p.dtype, .role = Role::kOut, .check = Check::kExact},
      {.name = "arg", .shape = y_shape(p), .dtype = DType::kU8, .role = arg_role, .check = Check::kExact}};
}

double MaxPool2dFwd::compulsory_bytes(const MaxPool2dProblem& p) {
  const auto covered = [](int outputs, int window, int stride, int pad, int size) {
    int count = 0;
    for (int i = 0; i < size; ++i) {
      const int last =
          std::min((i + pad) / stride, outputs - 1);  // the last window that begins at or before i
      count += last * stride - pad + window > i;
    }
    return static_cast<double>(count);
  };
  const double read = p.n * covered(p.p(), p.r, p.stride_h, p.pad_h, p.h) *
                      covered(p.q(), p.s, p.stride_w, p.pad_w, p.w) * p.c;
  const double outputs = 1.0 * p.n * p.p() * p.q() * p.c;
  const double dtype_bytes = static_cast<double>(size_of(p.dtype));
  return read * dtype_bytes + outputs * (dtype_bytes + (p.arg == PoolArg::kArg8 ? 1 : 0));
}

std::vector<TensorSpec> MaxPool2dBwd::tensors(const MaxPool2dProblem& p) {
  if (p.arg == PoolArg::kNone) {
    fail_problem("max_pool2d", p.str(), "the backward pass needs the saved positions: add arg8");
  }
  return {{.name = "dy", .shape = y_shape(p), .dtype = p.dtype},
          {.name = "arg", .shape = y_shape(p), .dtype = DType::kU8, .fill = Fill::kDerived},
          {.name = "dx",
           .shape = x_shape(p),
           .dtype = p.dtype,
           .role = Role::kOut,
           .terms = 1.0 * overlap(p.r, p.stride_h) * overlap(p.s, p.stride_w)}};
}

void MaxPool2dBwd::derive(const MaxPool2dProblem& problem, HostTensors& tensors) {
  MaxPool2dProblem p = problem;
  p.dtype = DType::kF32;
  // Bytes as values, 16 a draw: windows then hold ties, which the positions must break.
  std::vector<float> x(static_cast<size_t>(p.n) * p.h * p.w * p.c);
  std::vector<float> y(static_cast<size_t>(p.n) * p.p() * p.q() * p.c);
  for (size_t i = 0; i < x.size(); i += 16) {
    const Philox4 draw = philox(1, PhiloxStream::kTest, i / 16);
    for (size_t j = 0; j < std::min<size_t>(16, x.size() - i); ++j) {
      x[i + j] = static_cast<float>(draw.v[j / 4] >> (8 * (j % 4)) & 255u);
    }
  }
  max_pool2d_fwd_cpu_naive.plan(p, cpu_device(), "")
      .bind({.x = x.data(), .y = y.data(), .arg = tensors[1].pointer()}, nullptr)
      .launch(nullptr);
}

std::vector<TensorSpec> GlobalAvgPoolFwd::tensors(const GlobalAvgPoolProblem& p) {
  return {{.name = "x", .shape = {p.n, p.h, p.w, p.c}, .dtype = p.dtype},
          {.name = "y",
           .shape = {p.n, p.c},
           .dtype = p.dtype,
           .role = Role::kOut,
           .check = Check::kReal,
           .terms = 1.0 * p.h * p.w}};
}

std::vector<TensorSpec> GlobalAvgPoolBwd::tensors(const GlobalAvgPoolProblem& p) {
  return {{.name = "dy", .shape = {p.n, p.c}, .dtype = p.dtype},
          {.name = "dx",
           .shape = {p.n, p.h, p.w, p.c},
           .dtype = p.dtype,
           .role = Role::kOut,
           .check = Check::kReal}};
}

}  // namespace kiln
