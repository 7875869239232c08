// The judge judged, as in test_reference.cpp: avg_pool2d and global_max_pool.
#include <limits>

#include "kernels/common/error.h"
#include "tests/support/reference.h"

namespace kiln {
namespace {

TEST(AvgPool2d, HandWorked) {
  REQUIRE_PASS("avg_pool2d.fwd");
  // Two windows of a 2x4 image.
  EXPECT_EQ(naive("avg_pool2d.fwd", "n1_h2_w4_c1_r2_st2_p0", {{1, 5, 7, 9, 2, 4, -7, 3}})["y"],
            (Values{3, 3}));
  EXPECT_EQ(naive("avg_pool2d.bwd", "n1_h2_w4_c1_r2_st2_p0", {{4, 8}})["dx"],
            (Values{1, 1, 2, 2, 1, 1, 2, 2}));
  // Two channels stay apart.
  EXPECT_EQ(naive("avg_pool2d.fwd", "n1_h2_w2_c2_r2_st2_p0", {{1, 10, 2, 20, 3, 30, 6, 40}})["y"],
            (Values{3, 25}));
}

TEST(AvgPool2d, PaddingCountsAsZeros) {
  REQUIRE_PASS("avg_pool2d.fwd");
  // Each window of 2x2 holds one element and three zeros of the padding; the divisor stays 4.
  EXPECT_EQ(naive("avg_pool2d.fwd", "n1_h2_w2_c1_r2_st2_p1", {{4, 8, 12, 16}})["y"], (Values{1, 2, 3, 4}));
  EXPECT_EQ(naive("avg_pool2d.bwd", "n1_h2_w2_c1_r2_st2_p1", {{4, 8, 12, 16}})["dx"], (Values{1, 2, 3, 4}));
  // 3x3, stride 1, padding 1 on a 2x2 image of ones: every window holds all four elements.
  expect_near(naive("avg_pool2d.fwd", "n1_h2_w2_c1_r3_st1_p1", {{1, 1, 1, 1}})["y"],
              {4.0 / 9, 4.0 / 9, 4.0 / 9, 4.0 / 9}, 1e-7, "y");
}

TEST(AvgPool2d, OverlapAddsUpAndUncoveredIsZero) {
  REQUIRE_PASS("avg_pool2d.bwd");
  EXPECT_EQ(naive("avg_pool2d.bwd", "n1_h1_w3_c1_r1x2_st1_p0", {{10, 20}})["dx"], (Values{5, 15, 10}));
  // Floor mode: the third column is in no window. Stride beyond the window: the gap is in none.
  EXPECT_EQ(naive("avg_pool2d.bwd", "n1_h1_w3_c1_r1x2_st1x2_p0", {{10}})["dx"], (Values{5, 5, 0}));
  EXPECT_EQ(naive("avg_pool2d.bwd", "n1_h1_w4_c1_r1_st1x3_p0", {{10, 20}})["dx"], (Values{10, 0, 0, 20}));
}

TEST(AvgPool2d, CentralDifferences) {
  REQUIRE_PASS("avg_pool2d.bwd");
  for (const char* text : {"n2_h5_w4_c2_r2_st2_p0", "n1_h5_w5_c2_r3_st2_p1", "n1_h4_w5_c3_r3_st1_p1",
                           "n1_h6_w5_c1_r3x2_st2x1_p1x0", "n1_h7_w7_c2_r7_st1_p3", "n2_h3_w3_c2_r1_st1_p0"}) {
    const PassInfo& pass = find_pass("avg_pool2d.fwd");
    const auto specs = pass.tensors(pass.parse(text, DType::kF32));
    const Values x = random_values(static_cast<size_t>(specs[0].elements()), 3);
    const Values dy = random_values(static_cast<size_t>(specs[1].elements()), 5);
    // The pass is linear: a wide step loses nothing to rounding.
    expect_near(naive("avg_pool2d.bwd", text, {dy})["dx"],
                gradient([&](const Values& v) { return naive("avg_pool2d.fwd", text, {v})["y"]; }, x, dy, 1),
                1e-6, text);
  }
}

TEST(AvgPool2d, CompulsoryBytesLeaveUncoveredPixelsOut) {
  REQUIRE_PASS("avg_pool2d.fwd");
  const PassInfo& pass = find_pass("avg_pool2d.fwd");
  const auto bytes = [&](const char* text) { return pass.compulsory_bytes(pass.parse(text, DType::kBF16)); };
  EXPECT_EQ(bytes("n512_h32_w32_c64_r2_st2_p0"), 2.0 * 512 * 64 * (32 * 32 + 16 * 16));
  EXPECT_EQ(bytes("n1_h3_w3_c8_r2_st2_p0"), 2.0 * 8 * (4 + 1));
}

TEST(AvgPool2d, BadProblemsAreRefused) {
  REQUIRE_PASS("avg_pool2d.fwd");
  const PassInfo& pass = find_pass("avg_pool2d.fwd");
  for (const char* text : {"n1_h4_w4_c1_r2_st2_p2", "n1_h2_w2_c1_r3_st1_p0", "n1_h4_w4_c1_r2_st0_p0",
                           "n1_h4_w4_c1_r2_arg8", "n0_h4_w4_c1_r2"}) {
    EXPECT_THROW(pass.parse(text, DType::kF32), Error) << text;
  }
  EXPECT_EQ(pass.parse("n2_h8_c3_r3x2", DType::kF32).text, "n2_h8_w8_c3_r3x2_st3x2_p0");
}

TEST(GlobalMaxPool, HandWorked) {
  REQUIRE_PASS("global_max_pool.fwd");
  auto out = naive("global_max_pool.fwd", "n1_h2_w2_c2_arg32", {{1, -10, 7, -20, 3, -5, 7, -5}});
  EXPECT_EQ(out["y"], (Values{7, -5}));
  EXPECT_EQ(out["arg"], (Values{1, 2}));  // the first of equals
  EXPECT_EQ(naive("global_max_pool.fwd", "n1_h2_w2_c1", {{1, 7, 3, 7}})["y"], (Values{7}));
  EXPECT_EQ(naive("global_max_pool.bwd", "n1_h2_w2_c2_arg32", {{10, 20}, {1, 2}})["dx"],
            (Values{0, 0, 10, 0, 0, 20, 0, 0}));
}

TEST(GlobalMaxPool, NaNAndInfinity) {
  REQUIRE_PASS("global_max_pool.fwd");
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  auto out = naive("global_max_pool.fwd", "n1_h1_w4_c1_arg32", {{nan, 9, nan, infinity}});
  EXPECT_TRUE(std::isnan(out["y"][0]));
  EXPECT_EQ(out["arg"], (Values{2}));  // the last NaN
  out = naive("global_max_pool.fwd", "n1_h1_w2_c1_arg32", {{-infinity, -infinity}});
  EXPECT_EQ(out["y"], (Values{-infinity}));
  EXPECT_EQ(out["arg"], (Values{0}));
}

TEST(GlobalMaxPool, FastBreaksTiesAndNaNAlike) {
  REQUIRE_PASS("global_max_pool.fwd");
  const PassInfo& pass = find_pass("global_max_pool.fwd");
  const AnyProblem problem = pass.parse("n2_h3_w5_c70_arg32", DType::kF32);
  HostTensors tensors;
  for (const TensorSpec& spec : pass.tensors(problem)) tensors.emplace_back(spec);
  const Values values = random_values(2 * 15 * 70, 9);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (size_t i = 0; i < values.size(); ++i) {
    const int kind = static_cast<int>(std::floor(values[i] * 4));  // -8 to 7
    tensors[0].as<float>()[i] = kind < 0 ? -infinity : kind > 6 ? nan : static_cast<float>(kind % 2);
  }
  const HostTensors want = execute(pass, problem, cpu_device(), "cpu_naive", tensors);
  const HostTensors got = execute(pass, problem, cpu_device(), "cpu_fast", tensors);
  int nans = 0;
  for (int i = 0; i < 140; ++i) {
    EXPECT_EQ(got[2].as<int32_t>()[i], want[2].as<int32_t>()[i]) << i;
    const float a = got[1].as<float>()[i], b = want[1].as<float>()[i];
    EXPECT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << i;
    nans += std::isnan(b);
  }
  EXPECT_GT(nans, 0);
  EXPECT_LT(nans, 140);
}

TEST(GlobalMaxPool, CentralDifferences) {
  REQUIRE_PASS("global_max_pool.bwd");
  const std::string text = "n2_h3_w2_c2_arg32";
  Values x;  // a permutation: no two values within a step of each other
  for (int i = 0; i < 24; ++i) x.push_back((i * 7) % 24);
  auto out = naive("global_max_pool.fwd", text, {x});
  const Values dy = random_values(out["y"].size(), 5);
  const auto forward = [&](const Values& v) { return naive("global_max_pool.fwd", text, {v})["y"]; };
  expect_near(naive("global_max_pool.bwd", text, {dy, out["arg"]})["dx"], gradient(forward, x, dy, 0.25),
              1e-6, "dx");
}

TEST(GlobalMaxPool, BackwardNeedsPositions) {
  REQUIRE_PASS("global_max_pool.bwd");
  const PassInfo& pass = find_pass("global_max_pool.bwd");
  EXPECT_THROW(pass.tensors(pass.parse("n1_h2_w2_c1", DType::kF32)), Error);
}

}  // namespace
}  // namespace kiln
