// What the tuning cache's choice is taken for: its own problem, and the same problem with more of an epilogue
// where the implementation and the config that it names take that too; and errors of plans.
#include <gtest/gtest.h>

#include <map>

#include "kernels/common/impl_choice.h"
#include "kernels/conv2d/conv2d.h"
#include "nn/lower.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

// An op of its own: a size, and an epilogue of two parts.
struct MadeUpProblem {
  int n = 1;
  bool bias = false, relu = false;
  DType dtype = DType::kF32;
  std::string str() const {
    return std::string("n").append(std::to_string(n)).append(bias ? "_bias" : "").append(relu ? "_relu" : "");
  }
  std::vector<MadeUpProblem> plainer() const {
    std::vector<MadeUpProblem> list;
    if (bias && relu) list.push_back({.n = n, .bias = true});
    if (bias || relu) list.push_back({.n = n});
    return list;
  }
};

struct MadeUpPass {
  static constexpr const char* kOp = "made_up";
  static constexpr const char* kPass = "fwd";
  using Problem = MadeUpProblem;
  struct Args {
    const void* x;  // [N]
  };
  static Table<MadeUpPass> impls(DeviceKind);
};

Plan<MadeUpPass::Args> no_plan(const MadeUpProblem&, const Device&, std::string_view config) {
  if (config == "unplanned") return make_plan<MadeUpPass::Args>(0, [](const auto&, void*, Stream) {});
  fail_usage("unknown config '" + std::string(config) + "'");
}

// Takes everything; its tile "wide" takes no relu.
const Impl<MadeUpPass> tiled = {
    .name = "tiled",
    .supports = [](const MadeUpProblem&, const Device&) { return Support::yes(); },
    .plan = no_plan,
    .configs =
        [](const MadeUpProblem& p, const Device&) {
          return p.relu ? std::vector<std::string>{"narrow"} : std::vector<std::string>{"narrow", "wide"};
        }};
const Impl<MadeUpPass> without_relu = {
    .name = "without_relu",
    .supports = [](const MadeUpProblem& p, const Device&) { return Support::require(!p.relu, "no relu"); },
    .plan = no_plan};
const Impl<MadeUpPass> naive = {
    .name = "naive",
    .supports = [](const MadeUpProblem&, const Device&) { return Support::yes(); },
    .plan = no_plan};

Table<MadeUpPass> MadeUpPass::impls(DeviceKind) {
  static constexpr const Impl<MadeUpPass>* kTable[] = {&tiled, &without_relu, &naive};
  return kTable;
}

// What is picked for `problem` where a cache holds `choices` by problem string. `signature` "": the right
// one.
Picked<MadeUpPass> picked(const MadeUpProblem& problem, const std::map<std::string, std::string>& choices,
                          const std::string& signature = "") {
  ImplChoice choice;
  choice.set_tuned([&](const std::string& key, const std::string& asked) -> std::string {
    for (const auto& [text, impl] : choices) {
      if (key != tuning_key("made_up", "fwd", text, DType::kF32)) continue;
      const MadeUpProblem held{
          .n = 4, .bias = text.find("bias") != text.npos, .relu = text.find("relu") != text.npos};
      const std::string right = tuning_signature(tuning_choices<MadeUpPass>(held, cpu_device()));
      return asked == (signature.empty() ? right : signature) ? impl : "";
    }
    return "";
  });
  return pick<MadeUpPass>(problem, cpu_device(), choice);
}

std::string name_of(const Picked<MadeUpPass>& p) {
  return p.impl->name + (p.config.empty() ? "" : ":" + p.config);
}

constexpr MadeUpProblem kPlain{.n = 4}, kBias{.n = 4, .bias = true},
    kFused{.n = 4, .bias = true, .relu = true};

TEST(TunedChoice, OwnBeforePlainer) {
  EXPECT_EQ(name_of(picked(kPlain, {})), "tiled");
  EXPECT_FALSE(picked(kPlain, {}).tuned);
  EXPECT_EQ(name_of(picked(kPlain, {{"n4", "naive"}})), "naive");
  EXPECT_EQ(name_of(picked(kFused, {{"n4_bias_relu", "naive"}, {"n4", "tiled:narrow"}})), "naive");
  EXPECT_EQ(name_of(picked(kFused, {{"n4_bias", "tiled:narrow"}, {"n4", "naive"}})), "tiled:narrow");
  EXPECT_EQ(name_of(picked(kFused, {{"n4", "naive"}})), "naive");
  EXPECT_TRUE(picked(kFused, {{"n4", "naive"}}).tuned);
  EXPECT_EQ(name_of(picked(kPlain, {{"n4_bias", "naive"}})), "tiled")
      << "a plain problem asks for itself alone";
}

TEST(TunedChoice, APlainersSignatureCounts) {
  EXPECT_EQ(name_of(picked(kFused, {{"n4", "naive"}}, "another")), "tiled");
  EXPECT_EQ(picked(kFused, {{"n4", "naive"}}, "another").passed_over, "");
}

TEST(TunedChoice, WhatDoesNotTakeTheEpilogueIsPassedOverWithAWord) {
  const Picked<MadeUpPass> implementation = picked(kFused, {{"n4", "without_relu"}});
  EXPECT_EQ(name_of(implementation), "tiled");
  EXPECT_FALSE(implementation.tuned);
  EXPECT_EQ(implementation.passed_over, "without_relu, tuned for n4: no relu");
  const Picked<MadeUpPass> config = picked(kFused, {{"n4", "tiled:wide"}});
  EXPECT_EQ(name_of(config), "tiled");
  EXPECT_EQ(config.passed_over, "tiled:wide, tuned for n4: this config does not take the problem");
  EXPECT_EQ(name_of(picked(kBias, {{"n4", "tiled:wide"}})), "tiled:wide");
  EXPECT_EQ(name_of(picked(kFused, {{"n4_bias", "tiled:wide"}, {"n4", "naive"}})), "naive");
}

// A field that is added to Conv2dProblem later is an epilogue's unless plainer() is told to keep it.
TEST(TunedChoice, PlainerConvolutionsKeepTheShapeAlone) {
  const auto texts = [](std::string_view text) {
    std::vector<std::string> list;
    for (const Conv2dProblem& p : Conv2dProblem::parse(text, DType::kBF16).plainer()) {
      EXPECT_EQ(p.dtype, DType::kBF16);
      list.push_back(p.str());
    }
    return list;
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(texts("n2_h8_w9_c16_k32_r3"), Texts());
  EXPECT_EQ(texts("n2_h8_w9_c3_k32_r3x5_st2x1_p0_cs8_scale_bias_res_relu6"),
            (Texts{"n2_h8_w9_c3_k32_r3x5_st2x1_p0_cs8_bias", "n2_h8_w9_c3_k32_r3x5_st2x1_p0_cs8"}));
  EXPECT_EQ(texts("n2_h8_w9_c16_k32_r3_bias"), (Texts{"n2_h8_w9_c16_k32_r3"}));
  EXPECT_EQ(texts("n2_h8_w9_c16_k32_r3_acc"), (Texts{"n2_h8_w9_c16_k32_r3"}));
}

// The fused convolutions of inference take what the unfused ones of training were tuned to.
TEST(TunedChoice, InferenceTakesWhatTrainingWasTunedTo) {
  const ShapedNetwork network = infer_shapes(builtin_network("resnet18"), {.h = 32, .w = 32, .c = 3}, 10);
  LowerOptions options = {.batch = 2, .training = false};
  const std::string tuned = "n2_h32_w32_c64_k64_r3";
  options.impl.set_tuned([&](const std::string& key, const std::string&) {
    return key == tuning_key("conv2d", "fwd", tuned, DType::kF32) ? "cpu_naive" : "";
  });
  int fused = 0;
  for (const Step& step : lower(network, ParameterLayout(network), cpu_device(), options).steps) {
    if (step.pass != "conv2d.fwd") continue;
    const bool same = step.problem.starts_with(tuned + "_scale");
    EXPECT_EQ(step.impl, same ? "cpu_naive" : "cpu_fast") << step.problem;
    fused += same;
  }
  EXPECT_EQ(fused, 4);
}

TEST(PlanOf, ErrorsNameThePassTheProblemAndTheImplementation) {
  const auto message = [](const auto& body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([] { plan_of(tiled, kBias, cpu_device(), "tall"); }),
            "made_up.fwd n4_bias: implementation 'tiled': unknown config 'tall'");
  const Plan<MadeUpPass::Args> plan = plan_of(tiled, kBias, cpu_device(), "unplanned");
  alignas(16) static const char bytes[32] = {};
  EXPECT_EQ(message([&] { plan.bind({bytes + 1}, nullptr); }),
            "made_up.fwd n4_bias: implementation 'tiled': argument 0 is not 16-byte aligned");
  EXPECT_EQ(message([&] { plan.bind({bytes}, nullptr); }), "");
}

}  // namespace
}  // namespace kiln
