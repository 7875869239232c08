// The judge of depthwise_conv2d judged: it is conv2d with a filter that is zero off the diagonal k = c, whose
// judge test_reference.cpp judges.
#include "tests/support/reference.h"

namespace kiln {
namespace {

struct DepthwiseCase {
  int c, r, s;
  std::string image, rest;  // of the problem string, without channels
  std::string depthwise() const { return image + "_c" + std::to_string(c) + rest; }
  std::string dense() const { return image + "_c" + std::to_string(c) + "_k" + std::to_string(c) + rest; }
};

const DepthwiseCase kCases[] = {{3, 3, 3, "n2_h4_w5", "_r3"},
                                {2, 3, 3, "n1_h5_w6", "_r3_st2"},
                                {4, 3, 5, "n1_h5_w7", "_r3x5_st1x2_p0x2"},
                                {3, 5, 5, "n1_h6_w6", "_r5_st2_p1"},
                                {2, 1, 1, "n2_h3_w3", "_r1_st2"},
                                {1, 2, 2, "n1_h6_w5", "_r2_p1"}};

TEST(DepthwiseConv2d, HandWorked) {
  REQUIRE_PASS("depthwise_conv2d.fwd");
  const Values x = {1, 10, 2, 20, 3, 30}, w = {1, 2, 1, -1};  // [1,1,3,2], [1,2,2]
  EXPECT_EQ(naive("depthwise_conv2d.fwd", "n1_h1_w3_c2_r1x2_p0", {x, w})["y"], (Values{3, 0, 5, 10}));
  EXPECT_EQ(naive("depthwise_conv2d.fwd", "n1_h1_w3_c2_r1x2_p0_bias", {x, w, {1, 100}})["y"],
            (Values{4, 100, 6, 110}));
  const Values dy = {1, 2, 3, 4};
  EXPECT_EQ(naive("depthwise_conv2d.dgrad", "n1_h1_w3_c2_r1x2_p0", {dy, w})["dx"],
            (Values{1, 4, 4, 6, 3, -4}));
  auto wgrad = naive("depthwise_conv2d.wgrad", "n1_h1_w3_c2_r1x2_p0_bias", {dy, x});
  EXPECT_EQ(wgrad["dw"], (Values{1 * 1 + 3 * 2, 2 * 10 + 4 * 20, 1 * 2 + 3 * 3, 2 * 20 + 4 * 30}));
  EXPECT_EQ(wgrad["dbias"], (Values{4, 6}));
}

TEST(DepthwiseConv2d, IsConv2dWithADiagonalFilter) {
  REQUIRE_PASS("depthwise_conv2d.fwd");
  REQUIRE_PASS("conv2d.fwd");
  for (const DepthwiseCase& v : kCases) {
    const auto size_of_tensor = [&](const std::string& id, const std::string& text, size_t index) {
      const PassInfo& pass = *built_pass(id);
      return static_cast<size_t>(pass.tensors(pass.parse(text, DType::kF32))[index].elements());
    };
    const Values x = random_values(size_of_tensor("depthwise_conv2d.fwd", v.depthwise(), 0), 1);
    const Values w = random_values(static_cast<size_t>(v.r) * v.s * v.c, 2);
    const Values dy = random_values(size_of_tensor("depthwise_conv2d.fwd", v.depthwise(), 3), 3);
    const auto diagonal = [&](size_t tap, size_t c) { return (c * v.r * v.s + tap) * v.c + c; };
    Values dense(w.size() * v.c);
    for (size_t i = 0; i < w.size(); ++i) dense[diagonal(i / v.c, i % v.c)] = w[i];

    expect_near(naive("depthwise_conv2d.fwd", v.depthwise(), {x, w})["y"],
                naive("conv2d.fwd", v.dense(), {x, dense})["y"], 1e-6, v.depthwise() + " y");
    expect_near(naive("depthwise_conv2d.dgrad", v.depthwise(), {dy, w})["dx"],
                naive("conv2d.dgrad", v.dense(), {dy, dense})["dx"], 1e-6, v.depthwise() + " dx");
    const Values dense_dw = naive("conv2d.wgrad", v.dense(), {dy, x})["dw"];
    Values dw(w.size());
    for (size_t i = 0; i < w.size(); ++i) dw[i] = dense_dw[diagonal(i / v.c, i % v.c)];
    expect_near(naive("depthwise_conv2d.wgrad", v.depthwise(), {dy, x})["dw"], dw, 1e-6,
                v.depthwise() + " dw");
  }
}

}  // namespace
}  // namespace kiln
