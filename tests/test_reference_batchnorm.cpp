// The judge of batchnorm: hand-worked goldens and central differences in double.
#include "kernels/common/error.h"
#include "tests/support/reference.h"

namespace kiln {
namespace {

constexpr double kEps = static_cast<double>(1e-5f);

// An activation, where it has a slope.
struct Act {
  const char* suffix;
  double (*value)(double);
};
const Act kNone = {"", [](double u) { return u; }};
const Act kRelu = {"_relu", [](double u) { return std::max(u, 0.0); }};
const Act kRelu6 = {"_relu6", [](double u) { return std::min(std::max(u, 0.0), 6.0); }};
const Act kGelu = {"_gelu", [](double u) { return u * 0.5 * std::erfc(-u / std::sqrt(2.0)); }};
const Act kSilu = {"_silu", [](double u) { return u / (1 + std::exp(-u)); }};

struct Statistics {
  Values mean, var, rstd;
};

Statistics statistics(const Values& x, size_t c) {
  const double m = static_cast<double>(x.size() / c);
  Statistics s{Values(c), Values(c), Values(c)};
  for (size_t i = 0; i < x.size(); ++i) s.mean[i % c] += x[i] / m;
  for (size_t i = 0; i < x.size(); ++i) s.var[i % c] += (x[i] - s.mean[i % c]) * (x[i] - s.mean[i % c]) / m;
  for (size_t i = 0; i < c; ++i) s.rstd[i] = 1 / std::sqrt(s.var[i] + kEps);
  return s;
}

// y with the statistics of x; an empty residual is none.
Values batchnorm(const Values& x, const Values& gamma, const Values& beta, const Values& residual,
                 const Act& act) {
  const size_t c = gamma.size();
  const Statistics s = statistics(x, c);
  Values y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double u = gamma[i % c] * (x[i] - s.mean[i % c]) * s.rstd[i % c] + beta[i % c];
    y[i] = act.value(residual.empty() ? u : u + residual[i]);
  }
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
  expect_near(naive("batchnorm.fwd_apply", "n2_h1_w1_c1", {{1, 5}, {2}, {1}, {3}, {0.25}})["y"], {0, 2}, 1e-6,
              "fwd_apply");
}

// Four values, 1 3 5 7: biased variance 5, unbiased 20/3; the residual has no part in the statistics.
TEST(Batchnorm, RunningStatisticsAreOfXAndUnbiased) {
  REQUIRE_PASS("batchnorm.fwd_train");
  for (const std::string problem : {"n4_h1_w1_c1_mom0.25", "n4_h1_w1_c1_res_relu_mom0.25"}) {
    std::vector<Values> inputs = {{1, 3, 5, 7}, {1}, {0}};
    if (problem.find("res") != std::string::npos) inputs.push_back({100, 200, 300, 400});
    inputs.insert(inputs.end(), {{8}, {2}});
    auto out = naive("batchnorm.fwd_train", problem, inputs);
    expect_near(out["running_mean"], {0.75 * 8 + 0.25 * 4}, 1e-6, problem + " running_mean");
    expect_near(out["running_var"], {0.75 * 2 + 0.25 * 20 / 3}, 1e-6, problem + " running_var");
    expect_near(out["saved_mean"], {4}, 1e-7, problem + " saved_mean");
    expect_near(out["saved_rstd"], {1 / std::sqrt(5 + kEps)}, 1e-6, problem + " saved_rstd");
  }
}

TEST(Batchnorm, HandWorkedActivations) {
  REQUIRE_PASS("batchnorm.fwd_apply");
  // With mean 0, rstd 1, gamma 1 and beta 0, y is act(x).
  const auto apply = [](const std::string& act, const Values& x) {
    return naive("batchnorm.fwd_apply", "n5_h1_w1_c1" + act, {x, {1}, {0}, {0}, {1}})["y"];
  };
  EXPECT_EQ(apply("_relu", {-1, 0, 3, 6, 7}), (Values{0, 0, 3, 6, 7}));
  EXPECT_EQ(apply("_relu6", {-1, 0, 3, 6, 7}), (Values{0, 0, 3, 6, 6}));
  expect_near(apply("_gelu", {-8, -1, 0, 1, 8}),
              {-8 * 6.220960574271785e-16, -0.15865525393145707, 0, 0.8413447460685429, 8}, 1e-7, "gelu");
  expect_near(
      apply("_silu", {-8, -1, 0, 1, 8}),
      {-8 / (1 + std::exp(8.0)), -0.2689414213699951, 0, 0.7310585786300049, 8 / (1 + std::exp(-8.0))}, 1e-7,
      "silu");
  EXPECT_EQ(naive("batchnorm.fwd_apply", "n3_h1_w1_c1_res_relu6",
                  {{-1, 4, 4}, {1}, {0}, {0}, {1}, {2, 3, -1}})["y"],
            (Values{1, 6, 3}));
  EXPECT_EQ(naive("batchnorm.fwd_apply", "n2_h1_w1_c1_res", {{-1, 4}, {1}, {0}, {0}, {1}, {-2, 3}})["y"],
            (Values{-3, 7}));
}

// No gradient passes at the kinks themselves.
TEST(Batchnorm, HandWorkedKinks) {
  REQUIRE_PASS("batchnorm.bwd");
  const auto dbeta = [](const std::string& act) {
    return naive("batchnorm.bwd", "n5_h1_w1_c1" + act,
                 {{1, 2, 4, 8, 16}, {-1, 0, 3, 6, 7}, {1}, {0}, {0}, {1}})["dbeta"];
  };
  EXPECT_EQ(dbeta(""), Values{31});
  EXPECT_EQ(dbeta("_relu"), Values{28});
  EXPECT_EQ(dbeta("_relu6"), Values{4});
}

// One pixel: x is its own mean, so that u is beta + residual.
TEST(Batchnorm, HandWorkedMask) {
  REQUIRE_PASS("batchnorm.fwd_train");
  const Values nine(9, 1.0), beta = {0, 0, 0, 0, 0, 0, 0, 0, 1};
  const Values residual = {1, -1, 0, 6, 5, 7, -7, 2, -2};
  const auto train = [&](const std::string& act) {
    return naive("batchnorm.fwd_train", "n1_h1_w1_c9_res" + act, {nine, nine, beta, residual, nine, nine});
  };
  auto out = train("_relu");
  EXPECT_EQ(out["y"], (Values{1, 0, 0, 6, 5, 7, 0, 2, 0}));
  EXPECT_EQ(out["mask"], (Values{0b10111001, 0}));
  out = train("_relu6");
  EXPECT_EQ(out["y"], (Values{1, 0, 0, 6, 5, 6, 0, 2, 0}));
  EXPECT_EQ(out["mask"], (Values{0b10010001, 0}));
  EXPECT_EQ(train("").count("mask"), 0u);
  // gamma 1, mean 0, rstd 1, x 0: dx = dy - dbeta / M, M = 2.
  const Values zero(18), one(9, 1.0);
  Values dy(18), want(18), wanted_dbeta(9);
  for (int i = 0; i < 18; ++i) dy[i] = i + 1;
  for (const int i : {0, 8, 9 + 1, 9 + 8}) want[i] = dy[i];
  for (int i = 0; i < 18; ++i) wanted_dbeta[i % 9] += want[i];
  out = naive("batchnorm.bwd", "n2_h1_w1_c9_res_relu",
              {dy, zero, one, Values(9), Values(9), one, {0b1, 0b1, 0b10, 0b1}});
  EXPECT_EQ(out["dresidual"], want);
  EXPECT_EQ(out["dbeta"], wanted_dbeta);
  for (int i = 0; i < 18; ++i) EXPECT_EQ(out["dx"][i], want[i] - wanted_dbeta[i % 9] / 2) << i;
}

void check_gradients(const Act& act, bool with_residual) {
  const size_t m = 12, c = 3;
  const std::string text = std::string("n2_h2_w3_c3") + (with_residual ? "_res" : "") + act.suffix;
  const Values x = random_values(m * c, 1), beta = random_values(c, 3), dy = random_values(m * c, 4);
  const Values residual = with_residual ? random_values(m * c, 5) : Values();
  Values gamma = random_values(c, 2, true);
  for (double& v : gamma) v *= 4;  // so that relu6 is reached from above too
  const Statistics s = statistics(x, c);

  std::vector<Values> inputs = {x, gamma, beta};
  if (with_residual) inputs.push_back(residual);
  inputs.insert(inputs.end(), {{0, 0, 0}, {1, 1, 1}});
  auto fwd = naive("batchnorm.fwd_train", text, inputs);
  const Values y = batchnorm(x, gamma, beta, residual, act);
  expect_near(fwd["y"], y, 4e-6, text + " y");
  inputs = {x, gamma, beta, s.mean, s.rstd};
  if (with_residual) inputs.push_back(residual);
  expect_near(naive("batchnorm.fwd_apply", text, inputs)["y"], y, 4e-6, text + " fwd_apply");
  inputs[4] = s.var;
  expect_near(naive("batchnorm.fwd_infer", text, inputs)["y"], y, 4e-6, text + " fwd_infer");

  const bool masked = fwd.count("mask") > 0;
  EXPECT_EQ(masked, with_residual && act.suffix[0] != '\0');
  inputs = {dy, x, gamma, beta, s.mean, s.rstd};
  if (masked) inputs.push_back(fwd["mask"]);
  auto bwd = naive("batchnorm.bwd", text, inputs);
  const double step = 1e-5;
  expect_near(
      bwd["dx"],
      gradient([&](const Values& v) { return batchnorm(v, gamma, beta, residual, act); }, x, dy, step), 2e-5,
      text + " dx");
  expect_near(
      bwd["dgamma"],
      gradient([&](const Values& v) { return batchnorm(x, v, beta, residual, act); }, gamma, dy, step), 2e-5,
      text + " dgamma");
  expect_near(
      bwd["dbeta"],
      gradient([&](const Values& v) { return batchnorm(x, gamma, v, residual, act); }, beta, dy, step), 2e-5,
      text + " dbeta");
  EXPECT_EQ(bwd.count("dresidual"), masked ? 1u : 0u);
  if (!masked) return;
  expect_near(
      bwd["dresidual"],
      gradient([&](const Values& v) { return batchnorm(x, gamma, beta, v, act); }, residual, dy, step), 1e-6,
      text + " dresidual");
  // Both ends of the clamp are in the data, and values between them.
  const double high = act.suffix == kRelu6.suffix ? 6 : INFINITY;
  size_t low_count = 0, high_count = 0;
  for (const double v : y) {
    low_count += v <= 0;
    high_count += v >= high;
  }
  EXPECT_GT(low_count, 0u);
  EXPECT_EQ(high_count > 0, std::isfinite(high));
  EXPECT_LT(low_count + high_count, y.size());
}

TEST(Batchnorm, ForwardAndCentralDifferences) {
  REQUIRE_PASS("batchnorm.bwd");
  for (const Act& act : {kNone, kRelu, kRelu6, kGelu, kSilu}) check_gradients(act, false);
  for (const Act& act : {kNone, kRelu, kRelu6}) check_gradients(act, true);
}

TEST(Batchnorm, GivenStatisticsAreThoseOfTraining) {
  REQUIRE_PASS("batchnorm.fwd_given");
  for (const char* flags : {"", "_relu", "_relu_max2", "_res_relu6"}) {
    const std::string text = "n2_h3_w4_c5" + std::string(flags) + "_mom0.25";
    const Values x = random_values(2 * 3 * 4 * 5, 1), gamma = random_values(5, 2, true),
                 beta = random_values(5, 3);
    const Statistics s = statistics(x, 5);
    std::vector<Values> train = {x, gamma, beta}, given = train;
    if (text.find("res") != std::string::npos) {
      for (auto* inputs : {&train, &given}) inputs->push_back(random_values(x.size(), 4));
    }
    given.insert(given.end(), {s.mean, s.var});
    for (auto* inputs : {&train, &given}) inputs->insert(inputs->end(), {Values(5, 8.0), Values(5, 2.0)});
    auto want = naive("batchnorm.fwd_train", text, train), got = naive("batchnorm.fwd_given", text, given);
    for (const char* name : {"y", "saved_rstd", "running_mean", "running_var"}) {
      expect_near(got[name], want[name], 2e-6, text + " " + name);
    }
    EXPECT_EQ(got["mask"], want["mask"]);
    EXPECT_EQ(got["arg"], want["arg"]);
    EXPECT_EQ(got.count("saved_mean"), 0u);
  }
}

// With mean 0, rstd 1, gamma 1 and beta 0, u is x. Equal values behind the clamp are equal: the first counts.
TEST(Batchnorm, HandWorkedPool) {
  REQUIRE_PASS("batchnorm.fwd_given");
  const auto maxima = [](const std::string& act, const Values& x) {
    return naive("batchnorm.fwd_given", "n1_h3_w5_c1" + act + "_max2_eps1",
                 {x, {1}, {0}, {0}, {0}, {0}, {0}});
  };
  // Two windows, a column and a row that are in none.
  const Values x = {1,  2,  -3, -4, 99,  //
                    2,  1,  -1, -2, 99,  //
                    99, 99, 99, 99, 99};
  EXPECT_EQ(maxima("", x)["y"], (Values{2, -1}));
  EXPECT_EQ(maxima("", x)["arg"], (Values{1, 2}));
  EXPECT_EQ(maxima("_relu", x)["y"], (Values{2, 0}));
  EXPECT_EQ(maxima("_relu", x)["arg"], (Values{1, 0}));
  EXPECT_EQ(maxima("_relu6", {7, 8, 0, 5, 0, 9, 6, 1, 5, 0, 0, 0, 0, 0, 0})["arg"], (Values{0, 1}));
  // Of several NaN the last.
  EXPECT_EQ(maxima("_relu", {1, NAN, 3, 2, 0, NAN, 9, 4, 4, 0, 0, 0, 0, 0, 0})["arg"], (Values{2, 2}));
  // Five channels: four positions in the first byte, one in the second.
  Values wide(4 * 5);
  for (int c = 0; c < 5; ++c) wide[(c % 4) * 5 + c] = 1;
  EXPECT_EQ(naive("batchnorm.fwd_given", "n1_h2_w2_c5_max2",
                  {wide, Values(5, 1.0), Values(5), Values(5), Values(5, 1.0), Values(5), Values(5)})["arg"],
            (Values{0b11100100, 0}));
}

// dy goes to the pixel that the position names, and there through the activation; M counts all pixels.
TEST(Batchnorm, HandWorkedPoolGradient) {
  REQUIRE_PASS("batchnorm.bwd");
  const Values x = {1, 2, 3, -1, 4, 5, 6, 7, 8};
  auto out = naive("batchnorm.bwd", "n1_h3_w3_c1_relu_max2", {{18}, x, {1}, {0}, {0}, {1}, {0b10}});
  EXPECT_EQ(out["dbeta"], Values{0});  // x is -1 there
  EXPECT_EQ(out["dx"], Values(9));
  out = naive("batchnorm.bwd", "n1_h3_w3_c1_relu_max2", {{18}, x, {1}, {0}, {0}, {1}, {0b11}});
  EXPECT_EQ(out["dbeta"], Values{18});
  EXPECT_EQ(out["dgamma"], Values{72});
  for (int i = 0; i < 9; ++i) EXPECT_EQ(out["dx"][i], (i == 4 ? 18 : 0) - 2 - 8 * x[i]) << i;
}

TEST(Batchnorm, ProblemStrings) {
  REQUIRE_PASS("batchnorm.fwd_train");
  const PassInfo& pass = find_pass("batchnorm.fwd_train");
  for (const char* text : {"n2_h3_w4_c5", "n2_h3_w4_c5_relu", "n2_h3_w4_c5_res", "n2_h3_w4_c5_res_relu",
                           "n2_h3_w4_c5_res_relu6_eps0.001_mom0.5", "n2_h3_w4_c5_gelu", "n2_h3_w4_c5_silu",
                           "n2_h3_w4_c5_relu_max2_eps0.001"}) {
    EXPECT_EQ(pass.parse(text, DType::kF32).text, text);
  }
  const auto message = [&](const char* text) -> std::string {
    try {
      pass.parse(text, DType::kF32);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  for (const char* text : {"n2_c5_res_gelu", "n2_c5_res_silu"}) {
    EXPECT_NE(message(text).find("a residual goes with no activation, relu or relu6"), std::string::npos)
        << message(text);
  }
  for (const char* text : {"n2_h4_c5_res_relu_max2", "n2_h4_c5_gelu_max2"}) {
    EXPECT_NE(message(text).find("max2 goes with"), std::string::npos) << message(text);
  }
  EXPECT_NE(message("n2_h1_w4_c5_max2").find("h and w of at least 2"), std::string::npos);
  EXPECT_NE(message("n2_c5_relu_silu").find("two activations"), std::string::npos);
}

// A mean far above the spread: E[x^2] - E[x]^2 in fp32 would lose everything.
TEST(Batchnorm, LargeMean) {
  REQUIRE_PASS("batchnorm.fwd_train");
  Values x;
  for (int i = 0; i < 64; ++i) x.push_back(10000 + 0.25 * (i % 5));
  const Values want = batchnorm(x, {1}, {0}, {}, kNone);
  for (const std::string impl : {"cpu_naive", "cpu_fast"}) {
    const PassInfo& pass = find_pass("batchnorm.fwd_train");
    const AnyProblem problem = pass.parse("n64_h1_w1_c1", DType::kF32);
    HostTensors tensors;
    for (const TensorSpec& spec : pass.tensors(problem)) tensors.emplace_back(spec);
    for (int i = 0; i < 64; ++i) tensors[0].as<float>()[i] = static_cast<float>(x[i]);
    *tensors[1].as<float>() = 1;
    for (const HostTensor& out : execute(pass, problem, cpu_device(), impl, tensors)) {
      for (int i = 0; out.spec.name == "y" && i < 64; ++i) {
        EXPECT_NEAR(out.as<float>()[i], want[i], 1e-3) << impl;
      }
    }
  }
}

}  // namespace
}  // namespace kiln
