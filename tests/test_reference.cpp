// The judge judged: cpu_naive against hand-worked values, against forward passes written again in double, and its
// gradients against central differences of those.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <tuple>

#include "harness/execute.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"
#include "kernels/common/step_state.h"
#include "tests/support/fill.h"

namespace kiln {
namespace {


using Values = std::vector<double>;

const PassInfo* find(const std::string& id) {
  for (const PassInfo& pass : all_passes()) {
    if (pass.id() == id) return &pass;
  }
  return nullptr;
}

#define REQUIRE_PASS(id) \
  if (!find(id)) GTEST_SKIP() << id << " is not in this build"

// Runs cpu_naive on inputs given in order of the Args (absent ones left out); returns the outputs by name.
std::map<std::string, Values> naive(const std::string& id, const std::string& problem_text,
                                    const std::vector<Values>& inputs) {
  const PassInfo& pass = *find(id);
  const AnyProblem problem = pass.parse(problem_text, DType::kF32);
  HostTensors tensors;
  size_t next = 0;
  for (const TensorSpec& spec : pass.tensors(problem)) {
    HostTensor& tensor = tensors.emplace_back(spec);
    if (!spec.is_input()) continue;
    const Values& values = inputs.at(next++);
    EXPECT_EQ(static_cast<int64_t>(values.size()), spec.elements()) << id << " " << spec.name;
    for (size_t i = 0; i < values.size(); ++i) {
      if (spec.dtype == DType::kI32) {
        tensor.as<int32_t>()[i] = static_cast<int32_t>(values[i]);
      } else if (spec.dtype == DType::kU8) {
        tensor.data[i] = static_cast<unsigned char>(values[i]);
      } else {
        tensor.as<float>()[i] = static_cast<float>(values[i]);
      }
    }
  }
  std::map<std::string, Values> outputs;
  for (const HostTensor& tensor : execute(pass, problem, cpu_device(), "cpu_naive", tensors)) {
    if (!tensor.spec.is_output()) continue;
    Values& values = outputs[tensor.spec.name];
    for (int64_t i = 0; i < tensor.spec.elements(); ++i) {
      values.push_back(tensor.spec.dtype == DType::kI32  ? tensor.as<int32_t>()[i]
                       : tensor.spec.dtype == DType::kU8 ? tensor.data[static_cast<size_t>(i)]
                                                         : tensor.as<float>()[i]);
    }
  }
  return outputs;
}

// fp32-representable values: the judge and the double forward see the same.
Values random_values(size_t count, uint64_t seed, bool positive = false) {
  Values values(count);
  for (size_t i = 0; i < count; ++i) {
    const Philox4 draw = philox(seed, PhiloxStream::kTest, i);
    const float value = positive ? 0.5f + uniform01(draw.v[0]) : 4.0f * uniform01(draw.v[0]) - 2.0f;
    values[i] = value;
  }
  return values;
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void expect_near(const Values& got, const Values& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(got[i] - want[i]), tolerance * std::max(1.0, std::abs(want[i])))
        << what << " at " << i << ": got " << got[i] << ", wanted " << want[i];
  }
}

// d <dy, f(x)> / dx by central differences.
Values gradient(const std::function<Values(const Values&)>& f, Values x, const Values& dy, double step) {
  Values dx(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + step;
    const double above = dot(dy, f(x));
    x[i] = kept - step;
    dx[i] = (above - dot(dy, f(x))) / (2 * step);
    x[i] = kept;
  }
  return dx;
}

// conv2d -----------------------------------------------------------------------------------------------------------

struct ConvCase {
  int n, h, w, c, k, r, s, sh, sw, ph, pw;
  std::string text() const {
    const auto t = [](int v) { return std::to_string(v); };
    return "n" + t(n) + "_h" + t(h) + "_w" + t(w) + "_c" + t(c) + "_k" + t(k) + "_r" + t(r) + "x" + t(s) + "_st" + t(sh) +
           "x" + t(sw) + "_p" + t(ph) + "x" + t(pw);
  }
  int p() const { return (h + 2 * ph - r) / sh + 1; }
  int q() const { return (w + 2 * pw - s) / sw + 1; }
  // Scatter form: every x reaches the outputs it has a part in (cpu_naive gathers).
  Values forward(const Values& x, const Values& filter) const {
    Values y(static_cast<size_t>(n) * p() * q() * k);
    for (int in = 0; in < n; ++in)
      for (int ih = 0; ih < h; ++ih)
        for (int iw = 0; iw < w; ++iw)
          for (int fr = 0; fr < r; ++fr)
            for (int fs = 0; fs < s; ++fs) {
              const int top = ih + ph - fr, left = iw + pw - fs;
              if (top < 0 || left < 0 || top % sh || left % sw || top / sh >= p() || left / sw >= q()) continue;
              for (int ik = 0; ik < k; ++ik)
                for (int ic = 0; ic < c; ++ic)
                  y[((static_cast<size_t>(in) * p() + top / sh) * q() + left / sw) * k + ik] +=
                      x[((static_cast<size_t>(in) * h + ih) * w + iw) * c + ic] *
                      filter[((static_cast<size_t>(ik) * r + fr) * s + fs) * c + ic];
            }
    return y;
  }
};

const ConvCase kConvs[] = {{2, 4, 4, 2, 3, 3, 3, 1, 1, 1, 1}, {1, 5, 6, 3, 2, 3, 3, 2, 2, 1, 1},
                           {1, 5, 7, 1, 2, 3, 5, 1, 2, 0, 2}, {2, 3, 3, 2, 2, 1, 1, 2, 2, 0, 0},
                           {1, 6, 5, 2, 1, 2, 2, 1, 1, 1, 1}};

TEST(Conv2d, HandWorked) {
  REQUIRE_PASS("conv2d.fwd");
  const Values x = {1, 2, 3, 4, 5, 6, 7, 8, 9}, w = {1, 0, 0, 1};  // x[p,q] + x[p+1,q+1]
  EXPECT_EQ(naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0", {x, w})["y"], (Values{6, 8, 12, 14}));
  EXPECT_EQ(naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0_bias", {x, w, {10}})["y"], (Values{16, 18, 22, 24}));
  const Values dy = {1, 2, 3, 4};
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h3_w3_c1_k1_r2_p0", {dy, w})["dx"], (Values{1, 2, 0, 3, 5, 2, 0, 3, 4}));
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h3_w3_c1_k1_r2_p0_acc", {dy, w, Values(9, 100)})["dx"],
            (Values{101, 102, 100, 103, 105, 102, 100, 103, 104}));
  auto wgrad = naive("conv2d.wgrad", "n1_h3_w3_c1_k1_r2_p0_bias", {dy, x});
  EXPECT_EQ(wgrad["dw"], (Values{1 * 1 + 2 * 2 + 3 * 4 + 4 * 5, 1 * 2 + 2 * 3 + 3 * 5 + 4 * 6, 1 * 4 + 2 * 5 + 3 * 7 + 4 * 8,
                                 1 * 5 + 2 * 6 + 3 * 8 + 4 * 9}));
  EXPECT_EQ(wgrad["dbias"], (Values{10}));
  // Padded channel stride: what lies beyond c is ignored in x and written as zero in dx.
  EXPECT_EQ(naive("conv2d.fwd", "n1_h1_w2_c1_k1_r1_cs2", {{3, 99, 5, 99}, {2}})["y"], (Values{6, 10}));
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h1_w2_c1_k1_r1_cs2", {{3, 5}, {2}})["dx"], (Values{6, 0, 10, 0}));
}

TEST(Conv2d, AgainstDoubleAndCentralDifferences) {
  REQUIRE_PASS("conv2d.fwd");
  for (const ConvCase& c : kConvs) {
    const Values x = random_values(static_cast<size_t>(c.n) * c.h * c.w * c.c, 1);
    const Values w = random_values(static_cast<size_t>(c.k) * c.r * c.s * c.c, 2);
    const Values y = c.forward(x, w);
    const Values dy = random_values(y.size(), 3);
    expect_near(naive("conv2d.fwd", c.text(), {x, w})["y"], y, 1e-6, c.text() + " y");
    // Linear in x and in w: a step of 1 has no truncation error.
    expect_near(naive("conv2d.dgrad", c.text(), {dy, w})["dx"],
                gradient([&](const Values& v) { return c.forward(v, w); }, x, dy, 1.0), 1e-6, c.text() + " dx");
    expect_near(naive("conv2d.wgrad", c.text(), {dy, x})["dw"],
                gradient([&](const Values& v) { return c.forward(x, v); }, w, dy, 1.0), 1e-6, c.text() + " dw");
  }
}

// linear -----------------------------------------------------------------------------------------------------------

TEST(Linear, HandWorked) {
  REQUIRE_PASS("linear.fwd");
  const Values x = {1, 2, 3, 4}, w = {1, 10, 100, 1000, -1, 1};  // x [2,2], w [3,2]
  EXPECT_EQ(naive("linear.fwd", "n2_c2_k3_bias", {x, w, {0.5, 0, 0}})["y"], (Values{21.5, 2100, 1, 43.5, 4300, 1}));
  const Values dy = {1, 0, 2, 0, 1, 0};
  EXPECT_EQ(naive("linear.dgrad", "n2_c2_k3", {dy, w})["dx"], (Values{-1, 12, 100, 1000}));
  auto wgrad = naive("linear.wgrad", "n2_c2_k3_bias", {dy, x});
  EXPECT_EQ(wgrad["dw"], (Values{1, 2, 3, 4, 2, 4}));
  EXPECT_EQ(wgrad["dbias"], (Values{1, 1, 2}));
}

TEST(Linear, CentralDifferences) {
  REQUIRE_PASS("linear.fwd");
  const int n = 3, c = 5, k = 4;
  const Values x = random_values(n * c, 1), w = random_values(k * c, 2), dy = random_values(n * k, 3);
  const auto forward = [&](const Values& a, const Values& b) {
    Values y(n * k);
    for (int i = 0; i < n * k * c; ++i) y[i / c] += a[i / c / k * c + i % c] * b[i / c % k * c + i % c];
    return y;
  };
  expect_near(naive("linear.fwd", "n3_c5_k4", {x, w})["y"], forward(x, w), 1e-6, "y");
  expect_near(naive("linear.dgrad", "n3_c5_k4", {dy, w})["dx"],
              gradient([&](const Values& v) { return forward(v, w); }, x, dy, 1.0), 1e-6, "dx");
  expect_near(naive("linear.wgrad", "n3_c5_k4", {dy, x})["dw"],
              gradient([&](const Values& v) { return forward(x, v); }, w, dy, 1.0), 1e-6, "dw");
}

// batchnorm --------------------------------------------------------------------------------------------------------

constexpr double kEps = static_cast<double>(1e-5f);

Values batchnorm(const Values& x, const Values& gamma, const Values& beta, bool relu, Values* mean_out = nullptr,
                 Values* var_out = nullptr) {
  const size_t c = gamma.size(), m = x.size() / c;
  Values mean(c), var(c), y(x.size());
  for (size_t i = 0; i < x.size(); ++i) mean[i % c] += x[i] / static_cast<double>(m);
  for (size_t i = 0; i < x.size(); ++i) var[i % c] += (x[i] - mean[i % c]) * (x[i] - mean[i % c]) / static_cast<double>(m);
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = gamma[i % c] * (x[i] - mean[i % c]) / std::sqrt(var[i % c] + kEps) + beta[i % c];
    if (relu && y[i] <= 0) y[i] = 0;
  }
  if (mean_out) *mean_out = mean;
  if (var_out) *var_out = var;
  return y;
}

TEST(Batchnorm, HandWorked) {
  REQUIRE_PASS("batchnorm.fwd_train");
  // One channel, values 1 and 3: mean 2, biased variance 1, unbiased 2.
  auto out = naive("batchnorm.fwd_train", "n2_h1_w1_c1", {{1, 3}, {2}, {0.5}, {10}, {20}});
  const double rstd = 1 / std::sqrt(1 + kEps);
  expect_near(out["y"], {-2 * rstd + 0.5, 2 * rstd + 0.5}, 1e-6, "y");
  expect_near(out["saved_mean"], {2}, 1e-7, "saved_mean");
  expect_near(out["saved_rstd"], {rstd}, 1e-7, "saved_rstd");
  expect_near(out["running_mean"], {0.9 * 10 + 0.1 * 2}, 1e-6, "running_mean");
  expect_near(out["running_var"], {0.9 * 20 + 0.1 * 2}, 1e-6, "running_var");
  // One value: the running variance takes the biased 0.
  out = naive("batchnorm.fwd_train", "n1_h1_w1_c1", {{7}, {2}, {0.5}, {10}, {20}});
  expect_near(out["y"], {0.5}, 1e-7, "y of one value");
  expect_near(out["running_var"], {18}, 1e-6, "running_var of one value");
  expect_near(naive("batchnorm.fwd_infer", "n2_h1_w1_c1_relu", {{1, 5}, {2}, {1}, {3}, {4}})["y"],
              {0, 2 * 2 / std::sqrt(4 + kEps) + 1}, 1e-6, "fwd_infer");
  expect_near(naive("batchnorm.fwd_apply", "n2_h1_w1_c1", {{1, 5}, {2}, {1}, {3}, {0.25}})["y"], {0, 2}, 1e-6, "fwd_apply");
}

TEST(Batchnorm, ForwardAndCentralDifferences) {
  REQUIRE_PASS("batchnorm.bwd");
  const size_t m = 12, c = 3;
  for (const bool relu : {false, true}) {
    const std::string text = std::string("n2_h2_w3_c3") + (relu ? "_relu" : "");
    const Values x = random_values(m * c, 1), gamma = random_values(c, 2, true), beta = random_values(c, 3);
    const Values dy = random_values(m * c, 4);
    Values mean, var, rstd;
    const Values y = batchnorm(x, gamma, beta, relu, &mean, &var);
    for (const double v : var) rstd.push_back(static_cast<float>(1 / std::sqrt(v + kEps)));
    auto fwd = naive("batchnorm.fwd_train", text, {x, gamma, beta, {0, 0, 0}, {1, 1, 1}});
    expect_near(fwd["y"], y, 2e-6, "y");
    auto bwd = naive("batchnorm.bwd", text, {dy, x, gamma, beta, mean, rstd});
    const double step = 1e-5;
    expect_near(bwd["dx"], gradient([&](const Values& v) { return batchnorm(v, gamma, beta, relu); }, x, dy, step), 1e-5, "dx");
    expect_near(bwd["dgamma"], gradient([&](const Values& v) { return batchnorm(x, v, beta, relu); }, gamma, dy, step), 1e-5,
                "dgamma");
    expect_near(bwd["dbeta"], gradient([&](const Values& v) { return batchnorm(x, gamma, v, relu); }, beta, dy, step), 1e-5,
                "dbeta");
  }
}

// A mean far above the spread: E[x^2] - E[x]^2 in fp32 would lose everything.
TEST(Batchnorm, LargeMean) {
  REQUIRE_PASS("batchnorm.fwd_train");
  Values x;
  for (int i = 0; i < 64; ++i) x.push_back(10000 + 0.25 * (i % 5));
  for (const std::string impl : {"cpu_naive", "cpu_fast"}) {
    const PassInfo& pass = *find("batchnorm.fwd_train");
    const AnyProblem problem = pass.parse("n64_h1_w1_c1", DType::kF32);
    HostTensors tensors;
    for (const TensorSpec& spec : pass.tensors(problem)) tensors.emplace_back(spec);
    for (int i = 0; i < 64; ++i) tensors[0].as<float>()[i] = static_cast<float>(x[i]);
    *tensors[1].as<float>() = 1;
    const HostTensors out = execute(pass, problem, cpu_device(), impl, tensors);
    const Values want = batchnorm(x, {1}, {0}, false);
    for (int i = 0; i < 64; ++i) EXPECT_NEAR(out[5].as<float>()[i], want[i], 1e-3) << impl;
  }
}

// Pooling ----------------------------------------------------------------------------------------------------------

TEST(MaxPool2d, HandWorked) {
  REQUIRE_PASS("max_pool2d.fwd");
  auto out = naive("max_pool2d.fwd", "n1_h2_w4_c1_r2_st2_p0_arg8", {{1, 5, 7, 7, 5, 2, 7, 7}});
  EXPECT_EQ(out["y"], (Values{5, 7}));
  EXPECT_EQ(out["arg"], (Values{1, 0}));  // the first of equals, in (r, s) order
  EXPECT_EQ(naive("max_pool2d.bwd", "n1_h2_w4_c1_r2_st2_p0_arg8", {{10, 20}, {1, 0}})["dx"], (Values{0, 10, 20, 0, 0, 0, 0, 0}));
  // Padding is never the maximum, not even of negative values; positions count from the window's padded corner.
  out = naive("max_pool2d.fwd", "n1_h2_w2_c1_r2_st2_p1_arg8", {{-4, -3, -2, -1}});
  EXPECT_EQ(out["y"], (Values{-4, -3, -2, -1}));
  EXPECT_EQ(out["arg"], (Values{3, 2, 1, 0}));
  // Overlapping windows add up.
  EXPECT_EQ(naive("max_pool2d.bwd", "n1_h1_w3_c1_r1x2_st1_p0_arg8", {{10, 20}, {1, 0}})["dx"], (Values{0, 30, 0}));
}

TEST(MaxPool2d, NaNWins) {
  REQUIRE_PASS("max_pool2d.fwd");
  const double nan = std::nan("");
  auto out = naive("max_pool2d.fwd", "n1_h2_w2_c1_r2_st2_p0_arg8", {{1, nan, 9, 2}});
  EXPECT_TRUE(std::isnan(out["y"][0]));
  EXPECT_EQ(out["arg"], (Values{1}));
}

TEST(MaxPool2d, CentralDifferences) {
  REQUIRE_PASS("max_pool2d.bwd");
  const std::string text = "n1_h5_w5_c2_r3_st2_p1_arg8";
  Values x;  // a permutation: no two values within a step of each other
  for (int i = 0; i < 50; ++i) x.push_back((i * 17) % 50);
  auto out = naive("max_pool2d.fwd", text, {x});
  const Values dy = random_values(out["y"].size(), 5);
  expect_near(naive("max_pool2d.bwd", text, {dy, out["arg"]})["dx"],
              gradient([&](const Values& v) { return naive("max_pool2d.fwd", text, {v})["y"]; }, x, dy, 0.25), 1e-6, "dx");
}

TEST(GlobalAvgPool, HandWorkedAndAdjoint) {
  REQUIRE_PASS("global_avg_pool.fwd");
  EXPECT_EQ(naive("global_avg_pool.fwd", "n1_h2_w2_c2", {{1, 10, 2, 20, 3, 30, 6, 40}})["y"], (Values{3, 25}));
  EXPECT_EQ(naive("global_avg_pool.bwd", "n1_h2_w2_c2", {{4, 8}})["dx"], (Values{1, 2, 1, 2, 1, 2, 1, 2}));
}

// Elementwise ------------------------------------------------------------------------------------------------------

TEST(Relu, HandWorked) {
  REQUIRE_PASS("relu.fwd");
  const double nan = std::nan("");
  const Values y = naive("relu.fwd", "n1_c5", {{-1, 0, 2, nan, -0.0}})["y"];
  EXPECT_EQ((Values{y[0], y[1], y[2], y[4]}), (Values{0, 0, 2, 0}));
  EXPECT_TRUE(std::isnan(y[3]));
  EXPECT_EQ(naive("relu.bwd", "n1_c3", {{5, 6, 7}, {0, 1, 0}})["dx"], (Values{0, 6, 0}));
}

TEST(Add, HandWorked) {
  REQUIRE_PASS("add.fwd");
  EXPECT_EQ(naive("add.fwd", "n1_c2", {{1, 2}, {10, 20}})["y"], (Values{11, 22}));
  auto out = naive("add.bwd", "n1_c2", {{3, 4}});
  EXPECT_EQ(out["da"], (Values{3, 4}));
  EXPECT_EQ(out["db"], (Values{3, 4}));
}

// softmax_xent -----------------------------------------------------------------------------------------------------

double softmax_loss(const Values& x, const Values& labels, size_t c, double smoothing) {
  double loss = 0;
  const size_t n = labels.size();
  for (size_t i = 0; i < n; ++i) {
    double sum = 0;
    for (size_t k = 0; k < c; ++k) sum += std::exp(x[i * c + k]);
    for (size_t k = 0; k < c; ++k) {
      const double target = smoothing / static_cast<double>(c) + (static_cast<double>(k) == labels[i] ? 1 - smoothing : 0);
      loss -= target * (x[i * c + k] - std::log(sum));
    }
  }
  return loss / static_cast<double>(n);
}

TEST(SoftmaxXent, HandWorked) {
  REQUIRE_PASS("softmax_xent.fwd");
  auto out = naive("softmax_xent.fwd_bwd", "n2_c2", {{0, 0, 1000, -1000}, {0, 1}});
  expect_near(out["row_loss"], {std::log(2.0), 2000}, 1e-6, "row_loss");
  expect_near(out["summary"], {(std::log(2.0) + 2000) / 2, 1}, 1e-6, "summary");  // the first largest of {0, 0} is 0
  expect_near(out["dx"], {-0.25, 0.25, 0.5, -0.5}, 1e-6, "dx");
  EXPECT_EQ(naive("softmax_xent.fwd", "n1_c3", {{5, 5, 5}, {1}})["summary"][1], 0);
}

TEST(SoftmaxXent, LabelOutOfRangeIsNaN) {
  REQUIRE_PASS("softmax_xent.fwd_bwd");
  for (const double label : {-1.0, 3.0}) {
    auto out = naive("softmax_xent.fwd_bwd", "n2_c3", {{1, 2, 3, 4, 5, 6}, {0, label}});
    EXPECT_FALSE(std::isnan(out["row_loss"][0]));
    EXPECT_TRUE(std::isnan(out["row_loss"][1]));
    EXPECT_TRUE(std::isnan(out["summary"][0]));
    EXPECT_FALSE(std::isnan(out["dx"][0]));
    for (int k = 3; k < 6; ++k) EXPECT_TRUE(std::isnan(out["dx"][k]));
  }
}

TEST(SoftmaxXent, CentralDifferences) {
  REQUIRE_PASS("softmax_xent.fwd_bwd");
  const Values x = random_values(4 * 5, 1), labels = {0, 4, 2, 2};
  for (const auto& [text, smoothing] : {std::pair{"n4_c5", 0.0}, {"n4_c5_ls0.1", static_cast<double>(0.1f)}}) {
    auto out = naive("softmax_xent.fwd_bwd", text, {x, labels});
    const auto loss = [&, s = smoothing](const Values& v) { return Values{softmax_loss(v, labels, 5, s)}; };
    EXPECT_NEAR(out["summary"][0], loss(x)[0], 1e-6) << text;
    expect_near(out["dx"], gradient(loss, x, {1}, 1e-5), 1e-6, text);
    EXPECT_EQ(naive("softmax_xent.fwd", text, {x, labels})["row_loss"], out["row_loss"]);
  }
}

// optimizer --------------------------------------------------------------------------------------------------------

Values step_bytes(const StepState& state) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&state);
  return Values(bytes, bytes + sizeof state);
}

TEST(Sgd, HandWorked) {
  REQUIRE_PASS("sgd.step");
  StepState state;
  state.lr = 0.5f;
  // grad {1, 1}, param {8, 8}, velocity {4, 4}; momentum 0.5, decay 0.25 on the first.
  auto out = naive("sgd.step", "n2_d1_m0.5_wd0.25", {step_bytes(state), {1, 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["velocity"], (Values{0.5 * 4 + 1 + 2, 0.5 * 4 + 1}));
  EXPECT_EQ(out["param"], (Values{8 - 0.5 * 5, 8 - 0.5 * 3}));
  out = naive("sgd.step", "n2_d1_m0.5_wd0.25_nesterov", {step_bytes(state), {1, 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{8 - 0.5 * (3 + 0.5 * 5), 8 - 0.5 * (1 + 0.5 * 3)}));
  out = naive("sgd.step", "n2", {step_bytes(state), {1, -2}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{7.5, 9}));
  state.finite = 0;
  out = naive("sgd.step", "n2_d1_m0.5_wd0.25", {step_bytes(state), {std::nan(""), 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{8, 8}));
  EXPECT_EQ(out["velocity"], (Values{4, 4}));
}

TEST(GradNorm, HandWorked) {
  REQUIRE_PASS("grad_norm.fwd");
  EXPECT_EQ(naive("grad_norm.fwd", "n4", {{3, 0, -4, 0}})["norm"], (Values{5}));
  EXPECT_FALSE(std::isfinite(naive("grad_norm.fwd", "n2", {{1, std::nan("")}})["norm"][0]));
  EXPECT_FALSE(std::isfinite(naive("grad_norm.fwd", "n2", {{1, INFINITY}})["norm"][0]));
}

// augment ----------------------------------------------------------------------------------------------------------

TEST(Augment, PlainLoader) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  state.batch_offset = 1;
  // Three 1x2x1 images, order 2, 0, 1, from offset 1: images 0 and 1.
  auto out = naive("augment.fwd", "n2_h1_w2_c1_m3_cs2",
                   {step_bytes(state), {0, 255, 51, 102, 1, 2}, {7, 8, 9}, {2, 0, 1}, {0.5}, {0.25}});
  expect_near(out["y"], {-2, 0, 2, 0, -1.2, 0, -0.4, 0}, 1e-6, "y");
  EXPECT_EQ(out["y_labels"], (Values{7, 8}));
}

TEST(Augment, EveryPixelIsAShiftedOrMirroredOne) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  state.seed = 7;
  const int n = 16, h = 6, w = 5, pad = 2;
  Values images, labels, order;
  for (int i = 0; i < n * h * w; ++i) images.push_back(1 + i % (h * w));  // pixel value tells the position
  for (int i = 0; i < n; ++i) {
    labels.push_back(i);
    order.push_back(n - 1 - i);
  }
  auto out = naive("augment.fwd", "n16_h6_w5_c1_m16_pad2_flip", {step_bytes(state), images, labels, order, {0}, {1.0 / 255}});
  std::set<std::tuple<int, int, bool>> moves;
  for (int i = 0; i < n; ++i) {
    EXPECT_EQ(out["y_labels"][i], order[i]);
    int found = 0;
    for (int dy = -pad; dy <= pad; ++dy) {
      for (int dx = -pad; dx <= pad; ++dx) {
        for (const bool flip : {false, true}) {
          bool same = true;
          for (int y = 0; y < h && same; ++y) {
            for (int x = 0; x < w && same; ++x) {
              const int sy = y + dy, sx = (flip ? w - 1 - x : x) + dx;
              const double want = sy < 0 || sy >= h || sx < 0 || sx >= w ? 0 : 1 + sy * w + sx;
              same = std::abs(out["y"][(i * h + y) * w + x] - want) < 1e-3;
            }
          }
          if (same) moves.insert({dy, dx, flip});
          found += same;
        }
      }
    }
    EXPECT_EQ(found, 1) << "image " << i;
  }
  EXPECT_GT(moves.size(), 8u);  // the draws differ between images
}

TEST(Augment, CutoutZeroesOneSquare) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  const int n = 32, side = 8, cut = 4;
  Values images(n * side * side, 255), labels(n, 0), order;
  for (int i = 0; i < n; ++i) order.push_back(i);
  auto out = naive("augment.fwd", "n32_h8_w8_c1_m32_cut4", {step_bytes(state), images, labels, order, {0}, {1}});
  for (int i = 0; i < n; ++i) {
    int zeros = 0;
    for (int j = 0; j < side * side; ++j) zeros += out["y"][i * side * side + j] == 0;
    EXPECT_GE(zeros, cut / 2 * cut / 2);  // clipped at a corner
    EXPECT_LE(zeros, cut * cut);
  }
}

}  // namespace
}  // namespace kiln
