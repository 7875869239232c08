// lower(): which fusions are made, and that buffers which live together lie apart.
#include "nn/lower.h"

#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;

// How many lines of a network's training plan have `part`.
int plan_count(const std::string& name, const std::vector<std::string>& off, const std::string& part,
               bool training = true, const std::vector<std::string>& on = {}) {
  const ShapedNetwork network = infer_shapes(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10);
  const LowerOptions options = {.batch = 2, .training = training, .fusions = Fusions::without(off, on)};
  int found = 0;
  for (const std::string& line : lower(network, ParameterLayout(network), cpu_device(), options).lines()) {
    found += line.find(part) != std::string::npos;
  }
  return found;
}

TEST(NnLower, FusionsAreDecidedBySwitch) {
  const auto count = [](const std::vector<std::string>& off, const std::string& part) {
    return plan_count("resnet18", off, part);
  };
  EXPECT_EQ(count({}, "relu.fwd"), 0);
  EXPECT_EQ(count({"bn_residual"}, "relu.fwd"), 8);  // those behind an add
  EXPECT_EQ(count({"bn_act"}, "relu.fwd"), 9);
  EXPECT_EQ(count({"bn_act", "bn_residual"}, "relu.fwd"), 17);
  EXPECT_EQ(count({}, "_res_relu"), 16);  // forward and backward of a join
  EXPECT_EQ(count({}, "add.fwd"), 0);
  EXPECT_EQ(count({}, "_acc"), 8);  // one a residual join
  EXPECT_EQ(count({"dgrad_acc"}, "_acc"), 0);
  EXPECT_EQ(count({"dgrad_acc"}, "add.fwd"), 8);
  EXPECT_EQ(count({"bn_residual"}, "add.fwd"), 8);
  EXPECT_EQ(count({"bn_residual"}, "add.bwd"), 0);
  EXPECT_EQ(count({"bn_residual", "add_grad_alias"}, "add.bwd"), 8);
  EXPECT_EQ(count({"all"}, "relu.fwd"), 17);
  EXPECT_EQ(count({"all"}, "add.bwd"), 8);
  EXPECT_EQ(count({}, "conv2d.dgrad"), 19);  // all but the first
  expect_error([] { Fusions::without({"bn_residul"}); }, {"bn_residul", "did you mean 'bn_residual'"});
}

TEST(NnLower, FusionsOfTheMobilenets) {
  EXPECT_EQ(plan_count("mobilenet_v1", {}, "relu.fwd"), 0);
  EXPECT_EQ(plan_count("mobilenet_v1", {}, "_relu "), 54);  // forward and backward of 27
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "relu6.fwd"), 0);
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "_relu6"), 72);
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "_res "), 20);  // 10 joins
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "_acc"), 10);   // the gradients of expand's inputs
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "_res ", /*training=*/false), 10);
  EXPECT_EQ(plan_count("resnet18_smooth", {}, "gelu.fwd"), 8);  // behind a residual: relu and relu6 only
  EXPECT_EQ(plan_count("resnet18_smooth", {}, "_res "), 16);
}

TEST(NnLower, ConvolutionsTakeWhatStandsBehindThem) {
  const auto count = [](const std::vector<std::string>& off, const std::string& part) {
    return plan_count("resnet18", off, part, /*training=*/false);
  };
  EXPECT_EQ(count({}, "conv2d.fwd"), 20);
  EXPECT_EQ(count({}, "_scale_bias"), 20);
  EXPECT_EQ(count({}, "_scale_bias_res_relu"), 8);
  EXPECT_EQ(count({}, "_relu"), 17);
  EXPECT_EQ(count({}, "step.fold"), 1);
  for (const char* own : {"batchnorm.", "relu.fwd", "add.fwd"}) EXPECT_EQ(count({}, own), 0) << own;
  EXPECT_EQ(count({"conv_act"}, "relu.fwd"), 17);
  EXPECT_EQ(count({"conv_residual"}, "add.fwd"), 8);
  EXPECT_EQ(count({"conv_residual"}, "_scale_bias"), 20);
  EXPECT_EQ(count({"conv_bn"}, "batchnorm.fwd_infer"), 20);
  EXPECT_EQ(count({"conv_bn"}, "relu.fwd"), 0);  // the batchnorms take them
  EXPECT_EQ(count({"conv_bn"}, "step.fold"), 0);
  EXPECT_EQ(count({"all"}, "_scale"), 0);
  EXPECT_EQ(plan_count("resnet18", {}, "_scale"), 0);                           // training
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "batchnorm.fwd_infer", false), 17);  // behind depthwise ones
  EXPECT_EQ(plan_count("mobilenet_v2", {}, "_scale_bias_res ", false), 10);
}

TEST(NnLower, ConvolutionsGiveTheirBatchnormsStatisticsWhenToldTo) {
  const auto count = [](const std::string& name, const std::vector<std::string>& off, const std::string& part,
                        bool training = true) {
    return plan_count(name, off, part, training, {"conv_stats"});
  };
  EXPECT_EQ(plan_count("resnet18", {}, "_stats"), 0);
  EXPECT_EQ(plan_count("resnet18", {}, "batchnorm.fwd_train"), 20);
  EXPECT_EQ(count("resnet18", {}, "_stats"), 20);
  EXPECT_EQ(count("resnet18", {}, "batchnorm.fwd_given"), 20);
  EXPECT_EQ(count("resnet18", {}, "batchnorm.fwd_train"), 0);
  EXPECT_EQ(count("resnet18", {"conv_stats"}, "_stats"), 0);
  EXPECT_EQ(count("resnet18", {"all"}, "batchnorm.fwd_given"), 0);
  EXPECT_EQ(count("resnet18", {}, "_stats", /*training=*/false), 0);
  EXPECT_EQ(count("mobilenet_v2", {}, "_stats"), 36);  // depthwise ones give none
  EXPECT_EQ(count("mobilenet_v2", {}, "batchnorm.fwd_train"), 17);
}

TEST(NnLower, BatchnormsTakeThePoolBehindThem) {
  EXPECT_EQ(plan_count("small_cnn", {}, "_relu_max2"), 6);  // forward and backward of 3
  EXPECT_EQ(plan_count("small_cnn", {}, "max_pool2d"), 0);
  EXPECT_EQ(plan_count("small_cnn", {"bn_pool"}, "_max2"), 0);
  EXPECT_EQ(plan_count("small_cnn", {"bn_pool"}, "max_pool2d.bwd"), 3);
  EXPECT_EQ(plan_count("small_cnn", {"bn_act"}, "_max2"), 0);  // the relu between is in the way
  EXPECT_EQ(plan_count("small_cnn", {"bn_act"}, "max_pool2d.fwd"), 3);
  EXPECT_EQ(plan_count("small_cnn", {"all"}, "_max2"), 0);
  EXPECT_EQ(plan_count("small_cnn_smooth", {}, "_max2"), 0);
  // In inference a batchnorm that no conv2d took has the pool too.
  EXPECT_EQ(plan_count("small_cnn", {"conv_bn"}, "batchnorm.fwd_infer n2_h32_w32_c32_relu_max2", false), 1);
}

TEST(NnLower, FusionsOfANetworkWithoutBatchnorms) {
  const ShapedNetwork network = infer_shapes(test::tiny_plain_network(), {.h = 8, .w = 8, .c = 3}, 4);
  const auto count = [&](const std::vector<std::string>& off, const std::string& part, bool training = true) {
    const LowerOptions options = {.batch = 2, .training = training, .fusions = Fusions::without(off)};
    int found = 0;
    for (const std::string& line : lower(network, ParameterLayout(network), cpu_device(), options).lines()) {
      found += line.find(part) != std::string::npos;
    }
    return found;
  };
  EXPECT_EQ(count({}, "_max2_arg2"), 2);
  EXPECT_EQ(count({}, "relu6_max2"), 1);
  EXPECT_EQ(count({}, "max_pool2d.fwd"), 0);
  EXPECT_EQ(count({}, "max_pool2d.bwd"), 2);
  EXPECT_EQ(count({}, "_drelu"), 3);  // conv2's, conv3's through the pool, conv5's
  EXPECT_EQ(count({}, "_drelu6"), 2);
  EXPECT_EQ(count({}, "relu.bwd"), 1);  // that of act3, which two layers read
  EXPECT_EQ(count({}, "relu6.bwd"), 0);
  EXPECT_EQ(count({"dgrad_act"}, "_drelu"), 0);
  EXPECT_EQ(count({"dgrad_act"}, "relu6.bwd"), 2);
  EXPECT_EQ(count({"conv_pool"}, "_max2"), 0);
  EXPECT_EQ(count({"conv_pool"}, "_p0_arg2"), 4);
  EXPECT_EQ(count({"conv_pool"}, "_drelu"), 2);
  EXPECT_EQ(count({}, "_max2", /*training=*/false), 2);
  EXPECT_EQ(count({}, "arg2", /*training=*/false), 0);
  EXPECT_EQ(plan_count("small_cnn", {}, "_relu_max2", /*training=*/false), 3);
  EXPECT_EQ(plan_count("small_cnn", {"conv_pool"}, "max_pool2d.fwd", /*training=*/false), 3);
}

// With each fusion switched off in turn an inference gives the same logits.
TEST(NnLower, InferenceIsTheSameWithoutEachFusion) {
  const ValueShape input = {.h = 8, .w = 8, .c = 3};
  std::vector<std::vector<std::string>> switches = {{"all"}};
  for (const std::string& name : Fusions::names()) switches.push_back({name});
  for (const NetworkDescription& network :
       {test::tiny_network(true), test::tiny_mobile_network(true), test::tiny_mobile_network(false),
        test::tiny_plain_network(), test::tiny_pooled_network()}) {
    const auto logits = [&](const std::vector<std::string>& off) {
      StepProbe probe(network, input, 4, 3, cpu_device(), {.fusions_off = off, .training = false});
      StepProbe::Tensors tensors = probe.parameters();
      uint64_t seed = 3;
      for (auto& [name, values] : tensors) {
        ++seed;
        if (name.find("running") == std::string::npos && name.find("bn") == std::string::npos) continue;
        for (size_t i = 0; i < values.size(); ++i) values[i] += 0.4f * test::draw_uniform(seed, i);
      }
      probe.set_parameters(tensors);
      probe.forward(test::random_images(3 * input.elements(), 5), test::some_labels(3, 4));
      return probe.logits();
    };
    const std::vector<float> wanted = logits({"all"});
    EXPECT_GT(test::norm_of(wanted), 0.0);
    for (const std::vector<std::string>& off : switches) {
      EXPECT_LE(test::distance(logits(off), wanted), 1e-5 * test::norm_of(wanted)) << network.name << off[0];
    }
    EXPECT_LE(test::distance(logits({}), wanted), 1e-5 * test::norm_of(wanted)) << network.name;
  }
}

TEST(NnLower, BuffersThatLiveTogetherDoNotOverlap) {
  const ShapedNetwork network = infer_shapes(builtin_network("resnet18"), {.h = 32, .w = 32, .c = 3}, 10);
  const ParameterLayout layout(network);
  for (const std::vector<std::string>& off : {std::vector<std::string>{}, {"all"}}) {
    StepList list = lower(network, layout, cpu_device(), {.batch = 3, .fusions = Fusions::without(off)});
    StepList apart = list;
    const size_t bytes = plan_arena(&list, false);
    EXPECT_LT(bytes, 0.8 * static_cast<double>(plan_arena(&apart, true)));
    const int steps = static_cast<int>(list.steps.size());
    std::vector<std::pair<int, int>> life(list.buffers.size(), {steps, -1});
    for (int s = 0; s < steps; ++s) {
      for (int b : list.steps[s].buffers) {
        if (b != kNoBuffer) life[b] = {std::min(life[b].first, s), s};
      }
    }
    for (size_t a = 0; a < list.buffers.size(); ++a) {
      const Buffer& x = list.buffers[a];
      if (x.home != Home::kArena || life[a].second < 0) continue;
      EXPECT_EQ(x.offset % 256, 0u);
      EXPECT_LE(x.offset + x.bytes, bytes);
      for (size_t b = a + 1; b < list.buffers.size(); ++b) {
        const Buffer& y = list.buffers[b];
        if (y.home != Home::kArena || life[b].second < life[a].first || life[a].second < life[b].first)
          continue;
        EXPECT_TRUE(x.offset + x.bytes <= y.offset || y.offset + y.bytes <= x.offset)
            << x.name << " and " << y.name;
      }
    }
  }
}

TEST(NnLower, AWishThatIsNotSupportedNamesTheLayer) {
  const ShapedNetwork network = infer_shapes(builtin_network("small_cnn"), {.h = 32, .w = 32, .c = 3}, 10);
  const ParameterLayout layout(network);
  expect_error([&] { lower(network, layout, cpu_device(), {.batch = 2, .dtype = DType::kBF16}); },
               {"small_cnn", "layer"});
}

}  // namespace
}  // namespace kiln
