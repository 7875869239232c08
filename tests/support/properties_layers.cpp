// Properties of activations, softmax_xent and batchnorm. A tolerance is what rounding to the stored type and
// growth() of fp32 sums may come to.
#include <algorithm>
#include <cmath>

#include "tests/support/properties.h"
#include "tests/support/random_problems.h"

namespace kiln {
namespace {

// f(x) - f(-x) = x for relu, gelu and silu, f(x) + f(6 - x) = 6 for relu6.
std::string activation_symmetry(const Trial& trial) {
  const std::string text = random_problem(trial.op, trial.seed);
  const bool relu6 = trial.op == "relu6";
  Probe plain(trial, "fwd", text, !relu6), mirrored = plain;
  float* x = plain.in("x").as<float>();
  float* m = mirrored.in("x").as<float>();
  for (int64_t i = 0; i < plain.in("x").spec.elements(); ++i) {
    if (relu6) x[i] = 4 * x[i] + static_cast<float>(i % 5);
    m[i] = relu6 ? 6 - x[i] : -x[i];
  }
  for (const std::string& impl : plain.impls()) {
    const HostTensors of_x = plain.run(impl), of_m = mirrored.run(impl);
    for (int64_t i = 0; i < plain.in("x").spec.elements(); ++i) {
      const double a = value(output(of_x, "y"), i), b = value(output(of_m, "y"), i);
      const double wanted = relu6 ? 6 : x[i];
      const double tolerance = (plain.unit_rounding("y") + 32 * kFp32) * (std::abs(a) + std::abs(b));
      if (!near(relu6 ? a + b : a - b, wanted, tolerance)) {
        return differs(plain.label(impl), "f(" + number(x[i]) + ") against its mirror image",
                       relu6 ? a + b : a - b, wanted, tolerance);
      }
    }
  }
  return "";
}

// The gradients of each row sum to 0 and are (p - t) / N; losses are not negative; a constant added to the
// logits changes nothing.
std::string softmax_rows(const Trial& trial) {
  Draws d(trial.seed + 5000011);
  const double smoothing = d.pick({0, 0, 1, 2, 8}) / 8.0;
  const std::string text =
      random_problem(trial.op, trial.seed) + (smoothing > 0 ? "_ls" + number(smoothing) : std::string());
  Probe plain(trial, "fwd_bwd", text, true), moved = plain;
  const int64_t n = plain.in("x").spec.shape[0], classes = plain.in("x").spec.shape[1];
  // Multiples of 1/8, or of 8 where softmax without its maximum would overflow; with what is added exact in
  // bf16.
  const float step = d.chance(25) ? 8.0f : 0.125f;
  const float constant = step * static_cast<float>(d.between(-64, 64));
  float* x = plain.in("x").as<float>();  // [N,K]
  for (int64_t i = 0; i < n * classes; ++i) {
    x[i] = step * static_cast<float>(d.between(-64, 64));
    moved.in("x").as<float>()[i] = x[i] + constant;
  }
  for (const std::string& impl : plain.impls()) {
    const HostTensors out = plain.run(impl), out_moved = moved.run(impl);
    const HostTensor &dx = output(out, "dx"), &loss = output(out, "row_loss");
    const double u = plain.unit_rounding("dx");
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float* row = x + i * classes;
      const int label = plain.in("labels").as<int32_t>()[i];
      const double largest = *std::max_element(row, row + classes);
      double sum = 0, row_loss = 0, gradients = 0, slack = 0;
      for (int64_t k = 0; k < classes; ++k) sum += std::exp(row[k] - largest);
      for (int64_t k = 0; k < classes; ++k) {
        const double t = smoothing / static_cast<double>(classes) + (k == label ? 1 - smoothing : 0);
        const double p = std::exp(row[k] - largest) / sum, wanted = (p - t) / static_cast<double>(n);
        const double exponent = 2 * std::abs(row[k] - largest) * kFp32;
        const double tolerance =
            (growth(classes) + exponent) * (p + t) / static_cast<double>(n) + u * std::abs(wanted) + 1e-37;
        const double got = value(dx, i * classes + k),
                     got_moved = value(output(out_moved, "dx"), i * classes + k);
        const std::string what = "dx[" + std::to_string(i) + "," + std::to_string(k) + "]";
        if (!near(got, wanted, tolerance)) return differs(plain.label(impl), what, got, wanted, tolerance);
        if (!near(got_moved, got, 2 * tolerance)) {
          return differs(plain.label(impl), what + " with " + number(constant) + " added to the logits",
                         got_moved, got, 2 * tolerance);
        }
        row_loss -= t * (row[k] - largest - std::log(sum));
        gradients += got;
        slack += tolerance;
      }
      if (!near(gradients, 0, slack)) {
        return differs(plain.label(impl), "the sum of dx's row " + std::to_string(i), gradients, 0, slack);
      }
      const double tolerance = growth(classes) * (1 + std::abs(row_loss) + std::abs(largest));
      const double got = value(loss, i);
      if (!near(got, row_loss, tolerance) || !(got >= -tolerance)) {
        return differs(plain.label(impl), "the loss of row " + std::to_string(i), got, row_loss, tolerance);
      }
      const double with_constant = growth(classes) * std::abs(constant);
      if (!near(value(output(out_moved, "row_loss"), i), got, 2 * tolerance + with_constant)) {
        return differs(plain.label(impl), "the loss of row " + std::to_string(i) + " with a constant added",
                       value(output(out_moved, "row_loss"), i), got, 2 * tolerance + with_constant);
      }
      total += got;
    }
    const double mean = total / static_cast<double>(n),
                 tolerance = growth(static_cast<double>(n)) * (1 + std::abs(mean));
    if (!near(value(output(out, "summary"), 0), mean, tolerance)) {
      return differs(plain.label(impl), "the mean loss", value(output(out, "summary"), 0), mean, tolerance);
    }
  }
  return "";
}

// Mean and variance of channel c of a tensor [...,C].
struct Moments {
  double mean = 0, variance = 0, largest = 0;  // largest |element|
};

Moments moments_of(const HostTensor& tensor, int64_t c, int64_t channels) {
  const int64_t count = tensor.spec.elements() / channels;
  Moments m;
  for (int64_t i = 0; i < count; ++i) {
    m.mean += value(tensor, i * channels + c) / static_cast<double>(count);
    m.largest = std::max(m.largest, std::abs(value(tensor, i * channels + c)));
  }
  for (int64_t i = 0; i < count; ++i) {
    m.variance += std::pow(value(tensor, i * channels + c) - m.mean, 2) / static_cast<double>(count);
  }
  return m;
}

constexpr double kEps = 1e-5;  // batchnorm's, where the problem names none

// y has mean beta and variance gamma^2 var / (var + eps) in each channel, and hardly changes where x becomes
// a x + b.
std::string batchnorm_moments(const Trial& trial) {
  Draws d(trial.seed + 6000011);
  Probe plain(trial, "fwd_train", random_problem(trial.op, trial.seed)), moved = plain;
  const HostTensor& x = plain.in("x");
  const int64_t channels = x.spec.shape.back(), count = x.spec.elements() / channels;
  const float a = static_cast<float>(d.pick({2, 4})), b = static_cast<float>(d.between(-9, 9));
  for (int64_t i = 0; i < x.spec.elements(); ++i) {
    moved.in("x").as<float>()[i] = a * static_cast<float>(value(x, i)) + b;
  }
  for (const std::string& impl : plain.impls()) {
    const HostTensors out = plain.run(impl), out_moved = moved.run(impl);
    const HostTensor& y = output(out, "y");
    const double u = plain.unit_rounding("y") + growth(static_cast<double>(count));
    for (int64_t c = 0; c < channels; ++c) {
      const Moments of_x = moments_of(x, c, channels), of_y = moments_of(y, c, channels);
      const double gamma = value(plain.in("gamma"), c), beta = value(plain.in("beta"), c);
      const double rstd = 1 / std::sqrt(of_x.variance + kEps);
      const double size = of_y.largest + std::abs(beta);
      const double tolerance = u * size + 4 * kFp32 * of_x.largest * rstd * gamma;
      const std::string channel = " of channel " + std::to_string(c);
      if (!near(of_y.mean, beta, tolerance)) {
        return differs(plain.label(impl), "y's mean" + channel, of_y.mean, beta, tolerance);
      }
      const double wanted = gamma * gamma * of_x.variance * rstd * rstd,
                   slack = 4 * tolerance * (size + tolerance);
      if (!near(of_y.variance, wanted, slack)) {
        return differs(plain.label(impl), "y's variance" + channel, of_y.variance, wanted, slack);
      }
      if (of_x.variance < 0.05) continue;
      const double largest = std::abs(a) * of_x.largest + std::abs(b);
      const double change = 2 * tolerance + size * kEps / of_x.variance + 4 * kFp32 * largest * rstd * gamma;
      for (int64_t i = c; i < x.spec.elements(); i += channels) {
        const double got = value(output(out_moved, "y"), i);
        if (!near(got, value(y, i), change)) {
          return differs(plain.label(impl),
                         "y[" + std::to_string(i) + "] for " + number(a) + " x + " + number(b), got,
                         value(y, i), change);
        }
      }
    }
  }
  return "";
}

// Whether the images of a batchnorm hold a window of 2x2.
bool has_windows(const Trial& trial, const std::string& text) {
  const Probe probe(trial, "fwd_apply", text);
  Probe copy = probe;
  return copy.in("x").spec.shape[1] >= 2 && copy.in("x").spec.shape[2] >= 2;
}

// With a pool behind it y is the maximum over each window of what y is without, and arg says where that is.
std::string batchnorm_pool(const Trial& trial) {
  Draws d(trial.seed + 8000009);
  static const char* const kActs[] = {"", "_relu", "_relu6"};
  std::string text;
  uint64_t seed = trial.seed;
  do {
    text = random_problem(trial.op, seed);
    seed += 1000003;
  } while (!has_windows(trial, text));
  text += kActs[d.below(3)];
  Probe plain(trial, "fwd_given", text, true), pooled(trial, "fwd_given", text + "_max2", true);
  for (const char* name : {"x", "gamma", "beta", "mean", "var", "running_mean", "running_var"}) {
    pooled.in(name).data = plain.in(name).data;
  }
  for (const std::string& impl : pooled.impls()) {
    const HostTensors out = pooled.run(impl), single = plain.run(impl);
    const HostTensor &y = output(out, "y"), &of = output(single, "y"), &arg = output(out, "arg");
    const std::vector<int64_t> in = of.spec.shape, to = y.spec.shape;
    const int64_t row_bytes = arg.spec.shape[3], channels = to[3];
    for (int64_t i = 0; i < y.spec.elements(); ++i) {
      const int64_t c = i % channels, window = i / channels;
      const int64_t q = window % to[2], p = window / to[2] % to[1], n = window / to[2] / to[1];
      const auto at = [&](int64_t k) {
        return value(of, ((n * in[1] + 2 * p + k / 2) * in[2] + 2 * q + k % 2) * channels + c);
      };
      const double largest = std::max(std::max(at(0), at(1)), std::max(at(2), at(3)));
      const double got = value(y, i), tolerance = pooled.unit_rounding("y") * std::abs(largest);
      const int64_t position = arg.data[static_cast<size_t>(window * row_bytes + c / 4)] >> c % 4 * 2 & 3;
      const std::string element = "y[" + std::to_string(i) + "]";
      if (!near(got, largest, tolerance)) {
        return differs(pooled.label(impl), element, got, largest, tolerance);
      }
      if (!near(at(position), got, tolerance)) {
        return differs(pooled.label(impl), element + " at its position", at(position), got, tolerance);
      }
    }
  }
  return "";
}

// dx sums to 0 in each channel, and to next to nothing times x: a shift or a scale of x changes no output.
std::string batchnorm_gradients(const Trial& trial) {
  Draws d(trial.seed + 7000003);
  static const char* const kFlags[] = {"",     "_relu",     "_relu6",     "_gelu", "_silu",
                                       "_res", "_res_relu", "_res_relu6", "_max2", "_relu_max2"};
  const std::string text = random_problem(trial.op, trial.seed), flags = kFlags[d.below(10)];
  const bool fits = flags.find("max2") == std::string::npos || has_windows(trial, text);
  Probe probe(trial, "bwd", fits ? text + flags : text, true);
  const HostTensor &x = probe.in("x"), &dy = probe.in("dy");
  const int64_t channels = x.spec.shape.back(), count = x.spec.elements() / channels;
  const double m = static_cast<double>(count);
  for (const std::string& impl : probe.impls()) {
    const HostTensors out = probe.run(impl);
    const HostTensor& dx = output(out, "dx");
    for (int64_t c = 0; c < channels; ++c) {
      const double mean = value(probe.in("saved_mean"), c), rstd = value(probe.in("saved_rstd"), c);
      const double gamma = value(probe.in("gamma"), c), dgamma = value(output(out, "dgamma"), c);
      double sum = 0, along_x = 0, gradients = 0, largest = 0, spread = 0;
      for (int64_t i = c; i < dy.spec.elements(); i += channels) {
        gradients += 1.2 * std::abs(value(dy, i));  // gelu's slope goes up to 1.13
      }
      for (int64_t i = c; i < x.spec.elements(); i += channels) {
        const double normal = (value(x, i) - mean) * rstd;
        sum += value(dx, i);
        along_x += value(dx, i) * normal;
        largest = std::max(largest, std::abs(value(x, i)) * rstd);
        spread = std::max(spread, std::abs(normal));
      }
      const double of_scale = gamma * rstd * std::abs(dgamma);
      const double rounding =
          (2 * probe.unit_rounding("dx") + growth(m)) * (gamma * rstd * gradients + of_scale * (1 + spread));
      const double of_mean = 8 * kFp32 * largest * (gamma * rstd * gradients + of_scale * (1 + spread));
      const std::string channel = " of channel " + std::to_string(c);
      if (!near(sum, 0, rounding + of_mean)) {
        return differs(probe.label(impl), "the sum of dx" + channel, sum, 0, rounding + of_mean);
      }
      // sum dx xhat = gamma rstd dgamma (1 - var / (var + eps)).
      const double wanted = gamma * rstd * dgamma * kEps * rstd * rstd,
                   slack = (1 + spread) * (rounding + of_mean);
      if (!near(along_x, wanted, slack)) {
        return differs(probe.label(impl), "the sum of dx xhat" + channel, along_x, wanted, slack);
      }
    }
  }
  return "";
}

}  // namespace

std::vector<Property> layer_properties() {
  std::vector<Property> list;
  for (const char* op : {"relu", "relu6", "gelu", "silu"}) {
    list.push_back({op, "symmetry", {"fwd"}, activation_symmetry});
  }
  list.push_back({"softmax_xent", "rows", {"fwd_bwd"}, softmax_rows, 3});
  list.push_back({"batchnorm", "moments", {"fwd_train"}, batchnorm_moments, 3});
  list.push_back({"batchnorm", "gradients", {"bwd"}, batchnorm_gradients, 3});
  list.push_back({"batchnorm", "pool", {"fwd_given", "fwd_apply"}, batchnorm_pool, 2});
  return list;
}

}  // namespace kiln
