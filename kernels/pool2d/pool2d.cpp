#include "kernels/pool2d/pool2d.h"

#include <algorithm>
#include <tuple>

#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"
#include "kernels/common/window.h"

namespace kiln {

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_naive;
extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_cpu_naive;

namespace {

// What all four ops share.

template <class Problem>
void read_image(const ProblemReader& in, Problem& p) {
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
}

template <class Problem>
ProblemWriter write_image(const Problem& p) {
  return ProblemWriter().field("n", p.n).field("h", p.h).field("w", p.w).field("c", p.c);
}

template <class Problem>
void validate_image(std::string_view op, const Problem& p) {
  const std::string text = p.str();
  for (const auto& [name, value] : {std::pair{"n", p.n}, {"h", p.h}, {"w", p.w}, {"c", p.c}}) {
    require_positive(op, text, name, value);
  }
  if (p.dtype != DType::kF32 && p.dtype != DType::kBF16) fail_problem(op, text, "dtype must be fp32 or bf16");
  require_indexable(op, text, "x", {p.n, p.h, p.w, p.c});
}

template <class Problem>
TensorSpec x_like(const Problem& p, const char* name) {
  return {.name = name, .shape = {p.n, p.h, p.w, p.c}, .dtype = p.dtype};
}

// Bytes as values, 16 a draw: windows then hold ties, which the positions must break.
std::vector<float> values_with_ties(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; i += 16) {
    const Philox4 draw = philox(1, PhiloxStream::kTest, i / 16);
    for (size_t j = 0; j < std::min<size_t>(16, count - i); ++j) {
      x[i + j] = static_cast<float>(draw.v[j / 4] >> (8 * (j % 4)) & 255u);
    }
  }
  return x;
}

// What the ops with a sliding window share: max_pool2d and avg_pool2d.

template <class Problem>
ProblemWriter write_window(const Problem& p) {
  ProblemWriter out = write_image(p).pair("r", p.r, p.s).pair("st", p.stride_h, p.stride_w);
  return out.pair("p", p.pad_h, p.pad_w);
}

template <class Problem>
Problem parse_window(std::string_view op, std::string_view text, std::vector<std::string> flags,
                     DType dtype) {
  const ProblemReader in(op, text, {"n", "h", "w", "c", "r", "st", "p"}, flags);
  Problem p;
  read_image(in, p);
  std::tie(p.r, p.s) = in.pair("r");
  std::tie(p.stride_h, p.stride_w) = in.pair("st", {p.r, p.s});
  std::tie(p.pad_h, p.pad_w) = in.pair("p", {0, 0});
  if constexpr (requires { p.arg; }) {
    if (in.flag("arg8") && in.flag("arg2")) {
      fail_problem(op, std::string(text.substr(text.find(':') + 1)), "has two encodings, at most one goes");
    }
    p.arg = in.flag("arg8") ? PoolArg::kArg8 : in.flag("arg2") ? PoolArg::kArg2 : PoolArg::kNone;
  }
  p.dtype = dtype;
  p.validate();
  return p;
}

template <class Problem>
void validate_window(std::string_view op, const Problem& p) {
  const std::string text = p.str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem(op, text, what);
  };
  validate_image(op, p);
  for (const auto& [name, value] : {std::pair{"r (height)", p.r},
                                    {"r (width)", p.s},
                                    {"st (height)", p.stride_h},
                                    {"st (width)", p.stride_w}}) {
    require_positive(op, text, name, value);
  }
  rule(p.pad_h >= 0 && p.pad_w >= 0, "padding must not be negative");
  // With this every window holds at least one element of the image.
  rule(p.pad_h <= p.r / 2 && p.pad_w <= p.s / 2, "padding must be at most half of the window");
  rule(p.h + 2LL * p.pad_h >= p.r && p.w + 2LL * p.pad_w >= p.s,
       "the window must not be larger than the padded input");
  rule(p.h + 2LL * p.pad_h + p.stride_h <= 2147483647LL && p.w + 2LL * p.pad_w + p.stride_w <= 2147483647LL,
       "height and width with padding and stride must stay below 2^31");
  require_indexable(op, text, "y", {p.n, p.p(), p.q(), p.c});
}

template <class Problem>
TensorSpec y_like(const Problem& p, const char* name) {
  return {.name = name, .shape = {p.n, p.p(), p.q(), p.c}, .dtype = p.dtype};
}

// The most windows that share an element: the length of a sum in dx.
template <class Problem>
double overlap(const Problem& p) {
  const auto along = [](int window, int stride) { return (window + stride - 1) / stride; };
  return 1.0 * along(p.r, p.stride_h) * along(p.s, p.stride_w);
}

// Bytes of the covered part of x and of y.
template <class Problem>
double forward_bytes(const Problem& p) {
  return p.n * (covered_pixels(p) + 1.0 * p.p() * p.q()) * p.c * static_cast<double>(size_of(p.dtype));
}

// What the global ops share.

template <class Problem>
Problem parse_global(std::string_view op, std::string_view text, std::vector<std::string> flags,
                     DType dtype) {
  const ProblemReader in(op, text, {"n", "h", "w", "c"}, flags);
  Problem p;
  read_image(in, p);
  if constexpr (requires { p.arg; }) p.arg = in.flag("arg32");
  p.dtype = dtype;
  p.validate();
  return p;
}

template <class Problem>
TensorSpec channels_like(const Problem& p, const char* name) {
  return {.name = name, .shape = {p.n, p.c}, .dtype = p.dtype};
}

TensorSpec output(TensorSpec spec, Check check, double terms = 1) {
  spec.role = Role::kOut;
  spec.check = check;
  spec.terms = terms;
  return spec;
}

// The saved positions.
TensorSpec positions(std::vector<int64_t> shape, DType dtype, Role role) {
  const Fill fill = role == Role::kIn ? Fill::kDerived : Fill::kReal;
  return {.name = "arg",
          .shape = std::move(shape),
          .dtype = dtype,
          .role = role,
          .fill = fill,
          .check = Check::kExact};
}
std::vector<int64_t> arg_shape(const MaxPool2dProblem& p) {
  return {p.n, p.p(), p.q(), p.arg_bytes_per_pixel()};
}

}  // namespace

// max_pool2d

std::string MaxPool2dProblem::str() const {
  return write_window(*this).flag("arg8", arg == PoolArg::kArg8).flag("arg2", arg == PoolArg::kArg2).str();
}

MaxPool2dProblem MaxPool2dProblem::parse(std::string_view text, DType dtype) {
  return parse_window<MaxPool2dProblem>("max_pool2d", text, {"arg8", "arg2"}, dtype);
}

void MaxPool2dProblem::validate() const {
  validate_window("max_pool2d", *this);
  if (arg == PoolArg::kArg8 && 1LL * r * s > 256) {
    fail_problem("max_pool2d", str(), "arg8 needs a window of at most 256 elements");
  }
  if (arg == PoolArg::kArg2 && (r != 2 || s != 2)) {
    fail_problem("max_pool2d", str(), "arg2 needs a window of 2x2");
  }
}

std::vector<TensorSpec> MaxPool2dFwd::tensors(const MaxPool2dProblem& p) {
  const Role arg_role = p.arg != PoolArg::kNone ? Role::kOut : Role::kAbsent;
  return {x_like(p, "x"), output(y_like(p, "y"), Check::kExact),
          positions(arg_shape(p), DType::kU8, arg_role)};
}

double MaxPool2dFwd::compulsory_bytes(const MaxPool2dProblem& p) {
  return forward_bytes(p) + 1.0 * p.n * p.p() * p.q() * p.arg_bytes_per_pixel();
}

std::vector<TensorSpec> MaxPool2dBwd::tensors(const MaxPool2dProblem& p) {
  if (p.arg == PoolArg::kNone) {
    fail_problem("max_pool2d", p.str(), "the backward pass needs the saved positions: add arg8 or arg2");
  }
  return {y_like(p, "dy"), positions(arg_shape(p), DType::kU8, Role::kIn),
          output(x_like(p, "dx"), Check::kSum, overlap(p))};
}

void MaxPool2dBwd::derive(const MaxPool2dProblem& problem, HostTensors& tensors) {
  MaxPool2dProblem p = problem;
  p.dtype = DType::kF32;
  const std::vector<float> x = values_with_ties(static_cast<size_t>(p.n) * p.h * p.w * p.c);
  std::vector<float> y(static_cast<size_t>(p.n) * p.p() * p.q() * p.c);
  max_pool2d_fwd_cpu_naive.plan(p, cpu_device(), "")
      .bind({.x = x.data(), .y = y.data(), .arg = tensors[1].pointer()}, nullptr)
      .launch(nullptr);
}

// avg_pool2d

std::string AvgPool2dProblem::str() const { return write_window(*this).str(); }

AvgPool2dProblem AvgPool2dProblem::parse(std::string_view text, DType dtype) {
  return parse_window<AvgPool2dProblem>("avg_pool2d", text, {}, dtype);
}

void AvgPool2dProblem::validate() const { validate_window("avg_pool2d", *this); }

std::vector<TensorSpec> AvgPool2dFwd::tensors(const AvgPool2dProblem& p) {
  return {x_like(p, "x"), output(y_like(p, "y"), Check::kReal, 1.0 * p.r * p.s)};
}

double AvgPool2dFwd::compulsory_bytes(const AvgPool2dProblem& p) { return forward_bytes(p); }

std::vector<TensorSpec> AvgPool2dBwd::tensors(const AvgPool2dProblem& p) {
  return {y_like(p, "dy"), output(x_like(p, "dx"), Check::kReal, overlap(p))};
}

// global_max_pool

std::string GlobalMaxPoolProblem::str() const { return write_image(*this).flag("arg32", arg).str(); }

GlobalMaxPoolProblem GlobalMaxPoolProblem::parse(std::string_view text, DType dtype) {
  return parse_global<GlobalMaxPoolProblem>("global_max_pool", text, {"arg32"}, dtype);
}

void GlobalMaxPoolProblem::validate() const { validate_image("global_max_pool", *this); }

std::vector<TensorSpec> GlobalMaxPoolFwd::tensors(const GlobalMaxPoolProblem& p) {
  return {x_like(p, "x"), output(channels_like(p, "y"), Check::kExact),
          positions({p.n, p.c}, DType::kI32, p.arg ? Role::kOut : Role::kAbsent)};
}

std::vector<TensorSpec> GlobalMaxPoolBwd::tensors(const GlobalMaxPoolProblem& p) {
  if (!p.arg) {
    fail_problem("global_max_pool", p.str(), "the backward pass needs the saved positions: add arg32");
  }
  return {channels_like(p, "dy"), positions({p.n, p.c}, DType::kI32, Role::kIn),
          output(x_like(p, "dx"), Check::kExact)};
}

void GlobalMaxPoolBwd::derive(const GlobalMaxPoolProblem& problem, HostTensors& tensors) {
  GlobalMaxPoolProblem p = problem;
  p.dtype = DType::kF32;
  const std::vector<float> x = values_with_ties(static_cast<size_t>(p.n) * p.h * p.w * p.c);
  std::vector<float> y(static_cast<size_t>(p.n) * p.c);
  global_max_pool_fwd_cpu_naive.plan(p, cpu_device(), "")
      .bind({.x = x.data(), .y = y.data(), .arg = tensors[1].pointer()}, nullptr)
      .launch(nullptr);
}

// global_avg_pool

std::string GlobalAvgPoolProblem::str() const { return write_image(*this).str(); }

GlobalAvgPoolProblem GlobalAvgPoolProblem::parse(std::string_view text, DType dtype) {
  return parse_global<GlobalAvgPoolProblem>("global_avg_pool", text, {}, dtype);
}

void GlobalAvgPoolProblem::validate() const { validate_image("global_avg_pool", *this); }

std::vector<TensorSpec> GlobalAvgPoolFwd::tensors(const GlobalAvgPoolProblem& p) {
  return {x_like(p, "x"), output(channels_like(p, "y"), Check::kReal, 1.0 * p.h * p.w)};
}

std::vector<TensorSpec> GlobalAvgPoolBwd::tensors(const GlobalAvgPoolProblem& p) {
  return {channels_like(p, "dy"), output(x_like(p, "dx"), Check::kReal)};
}

}  // namespace kiln
