// The judge judged: cpu_naive of the layers against hand-worked values, against forward passes written again
// in double, and its gradients against central differences of those. test_reference_updates.cpp has the rest.
#include "kernels/common/error.h"
#include "kernels/conv2d/conv2d.h"
#include "tests/support/reference.h"

namespace kiln {
namespace {

// conv2d ------------------------------------------------------------------------------------------

struct ConvCase {
  int n, h, w, c, k, r, s, sh, sw, ph, pw;
  std::string text() const {
    const auto t = [](int v) { return std::to_string(v); };
    return "n" + t(n) + "_h" + t(h) + "_w" + t(w) + "_c" + t(c) + "_k" + t(k) + "_r" + t(r) + "x" + t(s) +
           "_st" + t(sh) + "x" + t(sw) + "_p" + t(ph) + "x" + t(pw);
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
              if (top < 0 || left < 0 || top % sh || left % sw || top / sh >= p() || left / sw >= q())
                continue;
              for (int ik = 0; ik < k; ++ik)
                for (int ic = 0; ic < c; ++ic)
                  y[((static_cast<size_t>(in) * p() + top / sh) * q() + left / sw) * k + ik] +=
                      x[((static_cast<size_t>(in) * h + ih) * w + iw) * c + ic] *
                      filter[((static_cast<size_t>(ik) * r + fr) * s + fs) * c + ic];
            }
    return y;
  }
};

const ConvCase kConvs[] = {{2, 4, 4, 2, 3, 3, 3, 1, 1, 1, 1},
                           {1, 5, 6, 3, 2, 3, 3, 2, 2, 1, 1},
                           {1, 5, 7, 1, 2, 3, 5, 1, 2, 0, 2},
                           {2, 3, 3, 2, 2, 1, 1, 2, 2, 0, 0},
                           {1, 6, 5, 2, 1, 2, 2, 1, 1, 1, 1}};

TEST(Conv2d, HandWorked) {
  REQUIRE_PASS("conv2d.fwd");
  const Values x = {1, 2, 3, 4, 5, 6, 7, 8, 9}, w = {1, 0, 0, 1};  // x[p,q] + x[p+1,q+1]
  EXPECT_EQ(naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0", {x, w})["y"], (Values{6, 8, 12, 14}));
  EXPECT_EQ(naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0_bias", {x, w, {10}})["y"], (Values{16, 18, 22, 24}));
  const Values dy = {1, 2, 3, 4};
  EXPECT_EQ(naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0_scale_bias_res_relu6",
                  {x, w, {2}, {-11}, {-2, 3, -9, -20}})["y"],
            (Values{0, 6, 4, 0}));
  EXPECT_THROW(naive("conv2d.dgrad", "n1_h3_w3_c1_k1_r2_p0_relu", {dy, w}), Error);
  EXPECT_THROW(naive("conv2d.wgrad", "n1_h3_w3_c1_k1_r2_p0_scale", {dy, x}), Error);
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h3_w3_c1_k1_r2_p0", {dy, w})["dx"],
            (Values{1, 2, 0, 3, 5, 2, 0, 3, 4}));
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h3_w3_c1_k1_r2_p0_acc", {dy, w, Values(9, 100)})["dx"],
            (Values{101, 102, 100, 103, 105, 102, 100, 103, 104}));
  auto wgrad = naive("conv2d.wgrad", "n1_h3_w3_c1_k1_r2_p0_bias", {dy, x});
  EXPECT_EQ(wgrad["dw"], (Values{1 * 1 + 2 * 2 + 3 * 4 + 4 * 5, 1 * 2 + 2 * 3 + 3 * 5 + 4 * 6,
                                 1 * 4 + 2 * 5 + 3 * 7 + 4 * 8, 1 * 5 + 2 * 6 + 3 * 8 + 4 * 9}));
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
                gradient([&](const Values& v) { return c.forward(v, w); }, x, dy, 1.0), 1e-6,
                c.text() + " dx");
    expect_near(naive("conv2d.wgrad", c.text(), {dy, x})["dw"],
                gradient([&](const Values& v) { return c.forward(x, v); }, w, dy, 1.0), 1e-6,
                c.text() + " dw");
  }
}

// linear ------------------------------------------------------------------------------------------

TEST(Linear, HandWorked) {
  REQUIRE_PASS("linear.fwd");
  const Values x = {1, 2, 3, 4}, w = {1, 10, 100, 1000, -1, 1};  // x [2,2], w [3,2]
  EXPECT_EQ(naive("linear.fwd", "n2_c2_k3_bias", {x, w, {0.5, 0, 0}})["y"],
            (Values{21.5, 2100, 1, 43.5, 4300, 1}));
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

TEST(Conv2d, StatisticsByHand) {
  REQUIRE_PASS("conv2d.fwd");
  const Values x = {1, 2, 3, 4, 5, 6, 7, 8, 9}, w = {1, 0, 0, 1};
  auto out = naive("conv2d.fwd", "n1_h3_w3_c1_k1_r2_p0_bias_stats", {x, w, {10}});
  EXPECT_EQ(out["y"], (Values{16, 18, 22, 24}));
  EXPECT_EQ(out["mean"], (Values{20}));
  EXPECT_EQ(out["var"], (Values{10}));  // of the 4 there are
  const PassInfo& pass = find_pass("conv2d.fwd");
  for (const char* bad :
       {"n1_h2_w2_c1_k1_r1_scale_stats", "n1_h2_w2_c1_k1_r1_res_stats", "n1_h2_w2_c1_k1_r1_relu_stats",
        "n1_h2_w2_c1_k1_r1_max2_stats", "n1_h2_w2_c1_k1_r1_stats_acc", "n1_h2_w2_c1_k1_r1_stats_drelu"}) {
    EXPECT_THROW(pass.parse(bad, DType::kF32), Error) << bad;
  }
  EXPECT_THROW(naive("conv2d.dgrad", "n1_h1_w1_c1_k1_r1_stats", {{1}, {1}}), Error);
  EXPECT_THROW(naive("conv2d.wgrad", "n1_h1_w1_c1_k1_r1_stats", {{1}, {1}}), Error);
  for (const char* text : {"n1_h2_w2_c1_k1_r1_stats", "n1_h2_w2_c1_k1_r1_bias_stats"}) {
    EXPECT_EQ(Conv2dProblem::parse(text, DType::kF32).str(), text);
  }
}

TEST(Conv2d, PooledByHand) {
  REQUIRE_PASS("conv2d.fwd");
  auto out = naive("conv2d.fwd", "n1_h2_w3_c1_k2_r1_relu_max2_arg2", {{1, -3, 50, 2, -3, 50}, {1, -1}});
  EXPECT_EQ(out["y"], (Values{2, 3}));         // the third column is dropped
  EXPECT_EQ(out["arg"], (Values{2 + 1 * 4}));  // the first of equals
  const PassInfo& pass = find_pass("conv2d.fwd");
  for (const char* bad :
       {"n1_h2_w1_c1_k1_r1_max2", "n1_h2_w2_c1_k1_r1_arg2", "n1_h2_w2_c1_k1_r1_max2_acc",
        "n1_h2_w2_c1_k1_r1_drelu_drelu6", "n1_h2_w2_c1_k1_r1_drelu_acc", "n1_h2_w2_c1_k1_r1_relu_drelu"}) {
    EXPECT_THROW(pass.parse(bad, DType::kF32), Error) << bad;
  }
  EXPECT_THROW(naive("conv2d.fwd", "n1_h2_w2_c1_k1_r1_drelu", {{1, 2, 3, 4}, {1}}), Error);
  EXPECT_THROW(naive("conv2d.wgrad", "n1_h2_w2_c1_k1_r1_max2", {{1}, {1, 2, 3, 4}}), Error);
}

TEST(Conv2d, BackThroughAnActivationByHand) {
  REQUIRE_PASS("conv2d.dgrad");
  const Values dy = {1, 2, 3}, w = {2}, x = {0, 6, 3};
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h1_w3_c1_k1_r1_drelu", {dy, w, x})["dx"], (Values{0, 4, 6}));
  EXPECT_EQ(naive("conv2d.dgrad", "n1_h1_w3_c1_k1_r1_drelu6", {dy, w, x})["dx"], (Values{0, 0, 6}));
}

// Pooling -----------------------------------------------------------------------------------------

TEST(MaxPool2d, HandWorked) {
  REQUIRE_PASS("max_pool2d.fwd");
  auto out = naive("max_pool2d.fwd", "n1_h2_w4_c1_r2_st2_p0_arg8", {{1, 5, 7, 7, 5, 2, 7, 7}});
  EXPECT_EQ(out["y"], (Values{5, 7}));
  EXPECT_EQ(out["arg"], (Values{1, 0}));  // the first of equals, in (r, s) order
  EXPECT_EQ(naive("max_pool2d.bwd", "n1_h2_w4_c1_r2_st2_p0_arg8", {{10, 20}, {1, 0}})["dx"],
            (Values{0, 10, 20, 0, 0, 0, 0, 0}));
  // Padding is never the maximum, not even of negative values; positions count from the window's padded
  // corner.
  out = naive("max_pool2d.fwd", "n1_h2_w2_c1_r2_st2_p1_arg8", {{-4, -3, -2, -1}});
  EXPECT_EQ(out["y"], (Values{-4, -3, -2, -1}));
  EXPECT_EQ(out["arg"], (Values{3, 2, 1, 0}));
  // Overlapping windows add up.
  EXPECT_EQ(naive("max_pool2d.bwd", "n1_h1_w3_c1_r1x2_st1_p0_arg8", {{10, 20}, {1, 0}})["dx"],
            (Values{0, 30, 0}));
}

TEST(MaxPool2d, PositionsOfTwoBits) {
  REQUIRE_PASS("max_pool2d.fwd");
  const std::string text = "n1_h2_w2_c5_r2_st2_p0_arg2";  // positions 3, 2, 1, 0, 2
  auto out = naive("max_pool2d.fwd", text,
                   {{0, 0, 0, 1, 0, /**/ 0, 0, 1, 0, 0, /**/ 0, 1, 0, 0, 1, /**/ 1, 0, 0, 0, 0}});
  EXPECT_EQ(out["y"], (Values{1, 1, 1, 1, 1}));
  EXPECT_EQ(out["arg"], (Values{3 + 2 * 4 + 1 * 16, 2}));
  EXPECT_EQ(naive("max_pool2d.bwd", text, {{5, 6, 7, 8, 9}, {27, 2}})["dx"],
            (Values{0, 0, 0, 8, 0, /**/ 0, 0, 7, 0, 0, /**/ 0, 6, 0, 0, 9, /**/ 5, 0, 0, 0, 0}));
  const PassInfo& pass = find_pass("max_pool2d.fwd");
  for (const char* bad : {"n1_h4_w4_c1_r3_st2_p0_arg2", "n1_h4_w4_c1_r2_st2_p0_arg8_arg2"}) {
    EXPECT_THROW(pass.parse(bad, DType::kF32), Error) << bad;
  }
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
              gradient([&](const Values& v) { return naive("max_pool2d.fwd", text, {v})["y"]; }, x, dy, 0.25),
              1e-6, "dx");
}

TEST(GlobalAvgPool, HandWorkedAndAdjoint) {
  REQUIRE_PASS("global_avg_pool.fwd");
  EXPECT_EQ(naive("global_avg_pool.fwd", "n1_h2_w2_c2", {{1, 10, 2, 20, 3, 30, 6, 40}})["y"],
            (Values{3, 25}));
  EXPECT_EQ(naive("global_avg_pool.bwd", "n1_h2_w2_c2", {{4, 8}})["dx"], (Values{1, 2, 1, 2, 1, 2, 1, 2}));
}

}  // namespace
}  // namespace kiln
