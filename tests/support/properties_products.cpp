// Properties of sums of products and of selections. On the integers -1, 0 and 1 they hold exactly: sums stay
// below 2^24, and where bf16 stores one beyond 256, the rounding of what was stored is the tolerance.
#include <algorithm>
#include <cmath>

#include "kernels/common/problem_string.h"
#include "tests/support/properties.h"
#include "tests/support/random_problems.h"

namespace kiln {
namespace {

// Sums that must all be the same.
class EqualSums {
 public:
  void add(const std::string& label, double sum, double tolerance) {
    sums_.push_back({label, sum, tolerance});
  }
  std::string verdict() const {
    bool equal = true;
    std::string text = "not equal:";
    for (const Sum& sum : sums_) {
      equal = equal && std::abs(sum.value - sums_[0].value) <= sum.tolerance + sums_[0].tolerance;
      text += "\n  " + sum.label + ": " + number(sum.value) + " +- " + number(sum.tolerance);
    }
    return equal ? "" : text;
  }

 private:
  struct Sum {
    std::string label;
    double value, tolerance;
  };
  std::vector<Sum> sums_;
};

// <a, b> where b is an output: its elements may have been rounded.
void add_dot(EqualSums& sums, const Probe& probe, const std::string& impl, const char* name,
             const HostTensor& a, const HostTensor& b, double offset = 0) {
  double tolerance = 0;
  for (int64_t i = 0; i < a.spec.elements(); ++i) {
    tolerance += std::abs(value(a, i)) * probe.integer_rounding(name, value(b, i));
  }
  sums.add(probe.label(impl) + " <" + a.spec.name + ", " + name + ">", dot(a, b) - offset, tolerance);
}

// <dy, f(x, w)> = <dgrad(dy, w), x> = <wgrad(dy, x), w>, and with a bias <dy, bias> = <dbias, bias>.
std::string filters_adjoint(const Trial& trial) {
  Draws d(trial.seed + 1000003);
  std::string text = random_problem(trial.op, trial.seed);
  const bool bias = d.chance(30), accumulate = trial.op == "conv2d" && d.chance(25);
  if (trial.op == "conv2d" && !accumulate && d.chance(15)) text += "_cs72";  // at least every c drawn
  const std::string with_bias = text + (bias ? "_bias" : "");
  Probe fwd(trial, "fwd", with_bias), wgrad(trial, "wgrad", with_bias);
  Probe dgrad(trial, "dgrad", text + (accumulate ? "_acc" : ""));
  HostTensor &x = fwd.in("x"), &w = fwd.in("w"), &dy = dgrad.in("dy");
  dgrad.in("w").data = w.data;
  wgrad.in("dy").data = dy.data;
  wgrad.in("x").data = x.data;

  double of_bias = 0;  // <dy, bias>
  if (bias) {
    const int64_t k = dy.spec.shape.back();
    for (int64_t i = 0; i < dy.spec.elements(); ++i) of_bias += value(dy, i) * value(fwd.in("bias"), i % k);
  }
  EqualSums sums, bias_sums;
  bias_sums.add("<dy, bias>", of_bias, 0);
  for (const std::string& impl : fwd.impls()) {
    const HostTensors out = fwd.run(impl);
    add_dot(sums, fwd, impl, "y", dy, output(out, "y"), of_bias);
  }
  const double before = accumulate ? dot(dgrad.in("dx"), x) : 0;
  for (const std::string& impl : dgrad.impls()) {
    const HostTensors out = dgrad.run(impl);
    add_dot(sums, dgrad, impl, "dx", x, output(out, "dx"), before);
  }
  for (const std::string& impl : wgrad.impls()) {
    const HostTensors out = wgrad.run(impl);
    add_dot(sums, wgrad, impl, "dw", w, output(out, "dw"));
    if (bias) add_dot(bias_sums, wgrad, impl, "dbias", fwd.in("bias"), output(out, "dbias"));
  }
  const std::string wrong = sums.verdict();
  return wrong.empty() ? bias_sums.verdict() : wrong;
}

// Windows of 2x2 have their positions in bytes or in two bits.
std::string saved_position_flag(const Trial& trial, const std::string& text) {
  const bool bits = trial.seed % 2 != 0 && text.find("_r2_") != std::string::npos;
  return trial.op == "max_pool2d"        ? (bits ? "_arg2" : "_arg8")
         : trial.op == "global_max_pool" ? "_arg32"
                                         : "";
}

// <dy, f(x)> = <bwd(dy), x>; a maximum's backward pass gets the positions of its own forward pass.
std::string pooling_adjoint(const Trial& trial) {
  const std::string plain = random_problem(trial.op, trial.seed);
  const std::string flag = saved_position_flag(trial, plain), text = plain + flag;
  Probe fwd(trial, "fwd", text), bwd(trial, "bwd", text);
  const HostTensor &x = fwd.in("x"), &dy = bwd.in("dy");
  // Averages are rounded, to a part of their largest summand, in the forward and in the backward pass.
  const double window = static_cast<double>(x.spec.elements());
  const double rounding =
      flag.empty() ? (fwd.unit_rounding("y") + kFp32 * 64) * std::max<double>(window, dy.spec.elements()) : 0;
  EqualSums sums;
  for (const std::string& impl : fwd.impls()) {
    const HostTensors out = fwd.run(impl);
    sums.add(fwd.label(impl) + " <dy, y>", dot(dy, output(out, "y")), rounding);
    if (!flag.empty()) bwd.in("arg").data = output(out, "arg").data;
    for (const std::string& back : bwd.impls()) {
      const HostTensors gradients = bwd.run(back);
      const HostTensor& dx = output(gradients, "dx");
      double tolerance = rounding;
      for (int64_t i = 0; i < x.spec.elements(); ++i) tolerance += bwd.integer_rounding("dx", value(dx, i));
      sums.add(bwd.label(back) + " behind " + impl + " <dx, x>", dot(dx, x), tolerance);
    }
  }
  return sums.verdict();
}

// A pass that is linear in these inputs, taken together.
struct LinearIn {
  const char* op;
  const char* pass;
  std::vector<std::string> inputs;
};

const std::vector<LinearIn>& linear_passes() {
  static const std::vector<LinearIn> all = {{"conv2d", "fwd", {"x"}},
                                            {"conv2d", "fwd", {"w"}},
                                            {"conv2d", "dgrad", {"dy"}},
                                            {"conv2d", "dgrad", {"w"}},
                                            {"conv2d", "wgrad", {"dy"}},
                                            {"conv2d", "wgrad", {"x"}},
                                            {"depthwise_conv2d", "fwd", {"x"}},
                                            {"depthwise_conv2d", "fwd", {"w"}},
                                            {"depthwise_conv2d", "dgrad", {"dy"}},
                                            {"depthwise_conv2d", "dgrad", {"w"}},
                                            {"depthwise_conv2d", "wgrad", {"dy"}},
                                            {"depthwise_conv2d", "wgrad", {"x"}},
                                            {"linear", "fwd", {"x"}},
                                            {"linear", "fwd", {"w"}},
                                            {"linear", "dgrad", {"dy"}},
                                            {"linear", "wgrad", {"x"}},
                                            {"linear", "wgrad", {"dy"}},
                                            {"max_pool2d", "bwd", {"dy"}},
                                            {"global_max_pool", "bwd", {"dy"}},
                                            {"avg_pool2d", "fwd", {"x"}},
                                            {"avg_pool2d", "bwd", {"dy"}},
                                            {"global_avg_pool", "fwd", {"x"}},
                                            {"global_avg_pool", "bwd", {"dy"}},
                                            {"relu", "bwd", {"dy"}},
                                            {"add", "fwd", {"a", "b"}},
                                            {"add", "bwd", {"dy"}}};
  return all;
}

// f(a u + b v) = a f(u) + b f(v).
std::string linearity(const Trial& trial) {
  std::vector<LinearIn> choices;
  std::copy_if(linear_passes().begin(), linear_passes().end(), std::back_inserter(choices),
               [&](const LinearIn& each) { return each.op == trial.op; });
  Draws d(trial.seed + 2000003);
  const LinearIn& f = choices[static_cast<size_t>(d.below(static_cast<int>(choices.size())))];
  const int a = d.pick({-2, -1, 1, 2}), b = d.pick({-2, 1, 2});
  const std::string plain = random_problem(trial.op, trial.seed);
  const std::string text = plain + saved_position_flag(trial, plain);
  Trial other = trial;
  other.seed = trial.seed + 3000017;
  Probe u(trial, f.pass, text), v(trial, f.pass, text), both(trial, f.pass, text), drawn(other, f.pass, text);
  for (const std::string& name : f.inputs) {
    v.in(name).data = drawn.in(name).data;
    float* sum = both.in(name).as<float>();
    for (int64_t i = 0; i < both.in(name).spec.elements(); ++i) {
      sum[i] = static_cast<float>(a * value(u.in(name), i) + b * value(v.in(name), i));
    }
  }
  for (const std::string& impl : u.impls()) {
    const HostTensors of_u = u.run(impl), of_v = v.run(impl), of_both = both.run(impl);
    for (size_t t = 0; t < of_u.size(); ++t) {
      const TensorSpec& spec = of_u[t].spec;
      if (!spec.is_output()) continue;
      // Averages: of values up to |a| + |b|, rounded three times.
      const double averaged =
          spec.check == Check::kReal ? (kFp32 * (spec.terms + 16) + u.unit_rounding(spec.name)) * 12 : 0;
      for (int64_t i = 0; i < spec.elements(); ++i) {
        const double fu = value(of_u[t], i), fv = value(of_v[t], i), fb = value(of_both[t], i);
        const double tolerance = averaged + u.integer_rounding(spec.name, fb) +
                                 std::abs(a) * u.integer_rounding(spec.name, fu) +
                                 std::abs(b) * u.integer_rounding(spec.name, fv);
        if (!(std::abs(fb - (a * fu + b * fv)) <= tolerance)) {
          return u.label(impl) + ": not linear in " + f.inputs[0] + ": '" + spec.name + "'[" +
                 std::to_string(i) + "] of " + std::to_string(a) + " u + " + std::to_string(b) + " v is " +
                 number(fb) + ", of u " + number(fu) + ", of v " + number(fv);
        }
      }
    }
  }
  return "";
}

// The image moved by whole strides gives the output moved by as many places, where no window meets the
// border.
std::string shift(const Trial& trial) {
  Draws d(trial.seed + 4000037);
  const std::string text = random_roomy_problem(trial.op, trial.seed);
  const ProblemReader in(trial.op, text, {"n", "h", "w", "c", "k", "r", "st", "p"}, {});
  const auto [r, s] = in.pair("r");
  const auto [stride_h, stride_w] = in.pair("st");
  const auto [pad_h, pad_w] = in.pair("p");
  const int by_h = d.below(2), by_w = by_h ? d.below(2) : 1;
  Probe still(trial, "fwd", text + (trial.op == "max_pool2d" ? "_arg8" : ""));
  Probe moved = still;
  const std::vector<int64_t>& x = still.in("x").spec.shape;  // [N,H,W,C]
  const int64_t h = x[1], w = x[2], c = x[3];
  float* to = moved.in("x").as<float>();
  const float* from = still.in("x").as<float>();
  for (int64_t i = 0; i < still.in("x").spec.elements(); ++i) {
    const int64_t row = i / c / w % h - by_h * stride_h, column = i / c % w - by_w * stride_w;
    to[i] = row >= 0 && column >= 0 ? from[i - (by_h * stride_h * w + by_w * stride_w) * c] : 0.0f;
  }
  const auto inside = [](int64_t place, int by, int stride, int pad, int window, int64_t length) {
    return place * stride - pad >= 0 && (place + by) * stride + window - 1 - pad < length;
  };
  for (const std::string& impl : still.impls()) {
    const HostTensors before = still.run(impl), after = moved.run(impl);
    long long compared = 0;
    for (size_t t = 0; t < before.size(); ++t) {
      const TensorSpec& spec = before[t].spec;
      if (!spec.is_output()) continue;
      const double tolerance =
          spec.check == Check::kReal ? kFp32 * (spec.terms + 16) + still.unit_rounding(spec.name) : 0;
      const int64_t p = spec.shape[1], q = spec.shape[2], k = spec.shape[3];
      for (int64_t i = 0; i < spec.elements(); ++i) {
        if (!inside(i / k / q % p, by_h, stride_h, pad_h, r, h) ||
            !inside(i / k % q, by_w, stride_w, pad_w, s, w)) {
          continue;
        }
        const int64_t j = i + (by_h * q + by_w) * k;
        ++compared;
        if (!(std::abs(value(after[t], j) - value(before[t], i)) <= tolerance)) {
          return still.label(impl) + ": '" + spec.name + "'[" + std::to_string(i) + "] is " +
                 number(value(before[t], i)) + ", but " + number(value(after[t], j)) +
                 " for the image moved by " + std::to_string(by_h) + "x" + std::to_string(by_w) + " strides";
        }
      }
    }
    if (compared == 0) return still.label(impl) + ": no output lies inside; random_roomy_problem is at fault";
  }
  return "";
}

}  // namespace

std::vector<Property> product_properties() {
  std::vector<Property> list;
  const std::vector<std::string> with_filters = {"fwd", "dgrad", "wgrad"}, two = {"fwd", "bwd"};
  list.push_back({"conv2d", "adjoint", with_filters, filters_adjoint, 6});
  list.push_back({"depthwise_conv2d", "adjoint", with_filters, filters_adjoint, 3});
  list.push_back({"linear", "adjoint", with_filters, filters_adjoint, 2});
  for (const char* op : {"max_pool2d", "avg_pool2d", "global_max_pool", "global_avg_pool"}) {
    list.push_back({op, "adjoint", two, pooling_adjoint, 2});
  }
  list.push_back({"conv2d", "linearity", with_filters, linearity, 4});
  list.push_back({"depthwise_conv2d", "linearity", with_filters, linearity, 2});
  list.push_back({"linear", "linearity", with_filters, linearity});
  for (const char* op : {"max_pool2d", "avg_pool2d", "global_max_pool", "global_avg_pool", "relu", "add"}) {
    list.push_back({op, "linearity", two, linearity});
  }
  list.push_back({"conv2d", "shift", {"fwd"}, shift, 3});
  for (const char* op : {"depthwise_conv2d", "max_pool2d", "avg_pool2d"}) {
    list.push_back({op, "shift", {"fwd"}, shift, 2});
  }
  return list;
}

}  // namespace kiln
