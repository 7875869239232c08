// The judge judged, as in test_reference.cpp: relu6, gelu and silu; and the fp32 forms of activation_math.h
// and activation_lanes.h against double.
#include "cpu_reference/activation_lanes.h"
#include "kernels/activation/activation_math.h"
#include "tests/support/reference.h"

namespace kiln {
namespace {

constexpr double kInf = INFINITY;
const double kNaN = std::nan("");

// Equal, or both NaN.
void expect_same(const Values& got, const Values& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i])))
        << what << " at " << i << ": got " << got[i] << ", wanted " << want[i];
  }
}

TEST(Relu, TiesInfinityAndNaN) {
  REQUIRE_PASS("relu.fwd");
  expect_same(naive("relu.fwd", "n1_c5", {{kInf, -kInf, kNaN, -0.0, 1e-45}})["y"], {kInf, 0, kNaN, 0, 1e-45f},
              "y");
  EXPECT_FALSE(std::signbit(naive("relu.fwd", "n1_c1", {{-0.0}})["y"][0]));
  // The gradient is selected, not multiplied: infinity times 0 would be NaN.
  expect_same(naive("relu.bwd", "n1_c5", {{kInf, kNaN, 3, kInf, 4}, {0, 0, kNaN, 2, kInf}})["dx"],
              {0, 0, 0, kInf, 4}, "dx");
}

TEST(Relu6, HandWorked) {
  REQUIRE_PASS("relu6.fwd");
  expect_same(naive("relu6.fwd", "n1_c8", {{7, 6, 5.5, 3, 0, -0.0, -1, 100}})["y"],
              {6, 6, 5.5, 3, 0, 0, 0, 6}, "y");
  expect_same(naive("relu6.fwd", "n1_c3", {{kInf, -kInf, kNaN}})["y"], {6, 0, kNaN}, "y");
  expect_same(naive("relu6.bwd", "n1_c6", {{1, 2, 3, 4, 5, 6}, {0, 6, 3, 5.9990234375, 1e-30, kNaN}})["dx"],
              {0, 0, 3, 4, 5, 0}, "dx");
  expect_same(naive("relu6.bwd", "n1_c3", {{kInf, kInf, kNaN}, {0, 6, 6}})["dx"], {0, 0, 0}, "dx");
}

// PyTorch's torch.nn.functional.gelu and its gradient.
TEST(Gelu, HandWorked) {
  REQUIRE_PASS("gelu.fwd");
  expect_near(naive("gelu.fwd", "n1_c7", {{1, -1, 2, -3, 0.5, 0, 10}})["y"],
              {0.8413447460685429, -0.15865525393145707, 1.9544997361036416, -0.004049694095,
               0.3457312306369995, 0, 10},
              1e-7, "y");
  expect_near(naive("gelu.bwd", "n1_c5", {{1, 2, 1, 3, 1}, {0, 1, -1, 0, 30}})["dx"],
              {0.5, 2 * 1.0833154705876864, -0.08331547058768, 1.5, 1}, 1e-7, "dx");
  // Nothing cancels in the judge's tail.
  EXPECT_NEAR(naive("gelu.fwd", "n1_c1", {{-10}})["y"][0], -7.6198530242e-23, 1e-29);
}

TEST(Silu, HandWorked) {
  REQUIRE_PASS("silu.fwd");
  expect_near(naive("silu.fwd", "n1_c6", {{1, -1, 2, 0, 50, -50}})["y"],
              {0.7310585786300049, -0.2689414213699951, 1.7615941559557649, 0, 50, -9.6437492398e-21}, 1e-7,
              "y");
  expect_near(naive("silu.bwd", "n1_c5", {{1, 2, 1, 3, 1}, {0, 1, -1, 0, 100}})["dx"],
              {0.5, 2 * 0.9276705118714868, 0.0723294881285132, 1.5, 1}, 1e-7, "dx");
}

// As PyTorch's formulas: -inf * 0 is NaN.
TEST(SmoothActivations, InfinityAndNaN) {
  REQUIRE_PASS("gelu.fwd");
  for (const std::string op : {"gelu", "silu"}) {
    const Values x = {kInf, -kInf, kNaN, 3e38, -3e38};
    expect_same(naive(op + ".fwd", "n1_c5", {x})["y"], {kInf, kNaN, kNaN, 3e38f, 0}, op);
    expect_same(naive(op + ".bwd", "n1_c5", {{1, 1, 1, 1, 1}, x})["dx"], {kNaN, kNaN, kNaN, 1, 0}, op);
  }
}

// Written in another form than the kernels'.
double gelu_by_erf(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double silu_by_tanh(double x) { return 0.5 * x * (1 + std::tanh(0.5 * x)); }
double relu6_by_clamp(double x) { return std::min(std::max(x, 0.0), 6.0); }

void expect_gradient(const std::string& op, double (*function)(double), Values x) {
  const Values dy = random_values(x.size(), 17);
  const auto forward = [&](const Values& at) {
    Values y;
    for (const double v : at) y.push_back(function(v));
    return y;
  };
  const std::string problem = "n1_c" + std::to_string(x.size());
  const Values y = forward(x);
  expect_near(naive(op + ".fwd", problem, {x})["y"], y, 1e-7, op + " y");
  const Values& saved = op == "relu6" ? y : x;
  expect_near(naive(op + ".bwd", problem, {dy, saved})["dx"], gradient(forward, x, dy, 1e-5), 1e-6,
              op + " dx");
}

TEST(SmoothActivations, GradientsByCentralDifferences) {
  REQUIRE_PASS("gelu.fwd");
  Values x = random_values(64, 5);
  for (double& v : x) v *= 4;  // [-8, 8)
  expect_gradient("gelu", gelu_by_erf, x);
  expect_gradient("silu", silu_by_tanh, x);
}

TEST(Relu6, GradientByCentralDifferences) {
  REQUIRE_PASS("relu6.fwd");
  Values x;
  for (double v = -2.125; v < 8.5; v += 0.25) x.push_back(v);  // no kink within a step
  expect_gradient("relu6", relu6_by_clamp, x);
}

// fp32 forms -------------------------------------------------------------------------------------------

// Calls look(x) for values over all magnitudes of both signs, and many where the functions bend.
template <class Look>
void sweep(const Look& look) {
  for (int i = -120000; i <= 120000; ++i) look(static_cast<float>(i) * 1e-3f);
  for (float v = 1e-44f; v < 1e38f; v *= 1.7f) {
    look(v);
    look(-v);
  }
}

template <class Single, class Double>
void expect_follows(const char* what, const Single& single, const Double& exact, double tolerance) {
  double worst = 0;
  float at = 0;
  sweep([&](float x) {
    const double want = exact(static_cast<double>(x));
    const double error = std::abs(single(x) - want) / std::max(1.0, std::abs(static_cast<double>(x)));
    if (!(error <= worst)) {
      worst = error;
      at = x;
    }
  });
  EXPECT_LE(worst, tolerance) << what << " at " << at << ": got " << single(at) << ", wanted "
                              << exact(static_cast<double>(at));
}

constexpr double kFew = 0x1p-22;  // 4 roundings

TEST(ActivationMath, SingleFollowsDouble) {
  expect_follows("gelu", gelu<float>, gelu<double>, kFew);
  expect_follows("gelu_slope", gelu_slope<float>, gelu_slope<double>, kFew);
  expect_follows("silu", silu<float>, silu<double>, kFew);
  expect_follows("silu_slope", silu_slope<float>, silu_slope<double>, kFew);
  expect_follows("relu6", relu6<float>, relu6<double>, 0);
}

TEST(ActivationMath, SlopesAreGradientsOfOne) {
  for (const double u : {-3.0, -0.0, 0.0, 0.25, 5.75, 6.0, 9.0}) {
    EXPECT_EQ(relu_slope(u), Relu::bwd(1.0, relu(u))) << u;
    EXPECT_EQ(relu6_slope(u), Relu6::bwd(1.0, relu6(u))) << u;
    EXPECT_EQ(gelu_slope(u), Gelu::bwd(1.0, u)) << u;
    EXPECT_EQ(silu_slope(u), Silu::bwd(1.0, u)) << u;
  }
}

TEST(ActivationLanes, FollowDouble) {
  expect_follows("GeluLane::fwd", GeluLane::fwd, gelu<double>, kFew);
  expect_follows("SiluLane::fwd", SiluLane::fwd, silu<double>, kFew);
  expect_follows(
      "GeluLane::bwd", [](float x) { return GeluLane::bwd(1, x); }, gelu_slope<double>, kFew);
  expect_follows(
      "SiluLane::bwd", [](float x) { return SiluLane::bwd(1, x); }, silu_slope<double>, kFew);
  for (const float x : {INFINITY, -INFINITY, NAN}) {
    expect_same({GeluLane::fwd(x), SiluLane::fwd(x), GeluLane::bwd(1, x), SiluLane::bwd(1, x)},
                {gelu(x), silu(x), gelu_slope(x), silu_slope(x)}, "lanes of " + std::to_string(x));
  }
}

}  // namespace
}  // namespace kiln
