// The engine on the GPU against the engine on the CPU, step by step, and against itself.
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

class NnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU: " << cuda_unavailable_reason();
  }
};

// Each step both backends start from the CPU's weights and running statistics. The CPU's relu masks and
// max-pool positions are imposed on the GPU, so that no kink remains between them.
void lock_step(const NetworkDescription& network, const ValueShape& input, int classes, int batch, int steps,
               const char* cpu_impl, std::vector<std::string> fusions_off) {
  const bool masks = !fusions_off.empty();
  const StepProbe::Options options = {
      .fusions_off = fusions_off,
      .optimizer = {.weight_decay = 5e-4f, .momentum = 0.9f, .nesterov = true},
      .seed = 6};
  StepProbe::Options cpu_options = options;
  cpu_options.impl = ImplChoice(cpu_impl);
  StepProbe cpu(network, input, classes, batch, cpu_device(), cpu_options);
  StepProbe gpu(network, input, classes, batch, cuda_device(), options);
  ASSERT_EQ(cpu.parameters(), gpu.parameters()) << "initial weights differ";
  for (int step = 0; step < steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const std::vector<float> images = test::random_images(batch * input.elements(), 100 + step);
    const std::vector<int32_t> labels = test::some_labels(batch, classes);
    gpu.set_parameters(cpu.parameters());
    for (StepProbe* probe : {&cpu, &gpu}) probe->forward(images, labels);
    ASSERT_NEAR(gpu.loss(), cpu.loss(), 1e-5 * std::max(1.0, cpu.loss()));
    if (masks) gpu.impose_kinks(cpu.kinks());
    for (StepProbe* probe : {&cpu, &gpu}) probe->backward();
    test::expect_close_gradients(gpu.gradients(), cpu.gradients(), 1e-4);
    if (::testing::Test::HasFailure()) return;
    for (StepProbe* probe : {&cpu, &gpu}) probe->update(0.01f);
    for (const auto& [name, values] : cpu.parameters()) {
      EXPECT_LE(test::distance(gpu.parameters().at(name), values), 1e-4 * (1e-2 + test::norm_of(values)))
          << name;
    }
  }
}

TEST_F(NnCuda, LockStepOfSmallCnnWithTheCpu) {
  lock_step(builtin_network("small_cnn"), {.h = 32, .w = 32, .c = 3}, 10, 16, 20, "*=cpu_fast", {"all"});
}

TEST_F(NnCuda, LockStepOfResnet18WithTheCpu) {
  lock_step(builtin_network("resnet18"), {.h = 32, .w = 32, .c = 3}, 10, 4, 2, "*=cpu_fast", {"all"});
}

TEST_F(NnCuda, LockStepOfTheMobilenetsWithTheCpu) {
  for (const char* name : {"mobilenet_v1", "mobilenet_v2"}) {
    SCOPED_TRACE(name);
    lock_step(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 4, 2, "*=cpu_fast", {"all"});
  }
}

TEST_F(NnCuda, LockStepOfTheSmoothTwinsFused) {
  for (const char* name : {"resnet18_smooth", "mobilenet_v1_smooth", "mobilenet_v2_smooth"}) {
    SCOPED_TRACE(name);
    lock_step(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 4, 1, "*=cpu_fast", {});
  }
}

TEST_F(NnCuda, LockStepOfATinyMobileNetworkWithTheJudge) {
  for (const bool kinks : {true, false}) {
    lock_step(test::tiny_mobile_network(kinks), {.h = 8, .w = 8, .c = 3}, 4, 5, 10, "*=cpu_naive",
              kinks ? std::vector<std::string>{"all"} : std::vector<std::string>{});
  }
}

TEST_F(NnCuda, LockStepOfATinyNetworkWithTheJudge) {
  lock_step(test::tiny_network(true), {.h = 8, .w = 8, .c = 3}, 4, 5, 20, "*=cpu_naive", {"all"});
}

TEST_F(NnCuda, LockStepOfASmoothFusedNetworkWithTheJudge) {
  lock_step(test::tiny_network(false), {.h = 8, .w = 8, .c = 3}, 4, 5, 20, "*=cpu_naive", {});
}

TEST_F(NnCuda, LockStepOfANetworkWithoutBatchnormsWithTheJudge) {
  lock_step(test::tiny_plain_network(), {.h = 8, .w = 8, .c = 3}, 4, 5, 10, "*=cpu_naive", {"all"});
}

// Without a wish statistics come from the convolutions that sum them in registers and have a large output:
// in resnet18 the 13 of 3x3 filters and stride 1 behind the first.
TEST_F(NnCuda, ConvolutionsGiveStatisticsWhereTheBatchnormGains) {
  if (cuda_device().sm != 90) GTEST_SKIP() << "no kernel of this device sums in registers";
  const ShapedNetwork network = infer_shapes(builtin_network("resnet18"), {.h = 32, .w = 32, .c = 3}, 10);
  const auto count = [&](int batch, const std::vector<std::string>& off) {
    const LowerOptions options = {.batch = batch, .dtype = DType::kBF16, .fusions = Fusions::without(off)};
    int found = 0;
    for (const std::string& line : lower(network, ParameterLayout(network), cuda_device(), options).lines()) {
      found += line.find("_stats") != std::string::npos;
    }
    return found;
  };
  EXPECT_EQ(count(512, {}), 13);
  EXPECT_EQ(count(512, {"conv_stats"}), 0);
  EXPECT_EQ(count(2, {}), 0);
}

// Convolutions that pool their output, and gradients that go back through activations, on maps of each width
// that whole rows make tiles of.
TEST_F(NnCuda, FusedStepWithoutBatchnormsMatchesUnfusedStep) {
  const NetworkDescription network = parse_network(R"({"name": "plain", "layers": [
      {"id": "conv1", "type": "conv2d", "channels": 32, "kernel": 3, "padding": 1, "bias": true},
      {"id": "act1", "type": "relu"},
      {"id": "conv2", "type": "conv2d", "channels": 32, "kernel": 3, "padding": 1, "bias": true},
      {"id": "act2", "type": "relu"},
      {"id": "pool2", "type": "max_pool2d", "kernel": 2},
      {"id": "conv3", "type": "conv2d", "channels": 64, "kernel": 3, "padding": 1, "bias": true},
      {"id": "act3", "type": "relu6"},
      {"id": "pool3", "type": "max_pool2d", "kernel": 2},
      {"id": "conv4", "type": "conv2d", "channels": 72, "kernel": 3, "padding": 1},
      {"id": "act4", "type": "relu"},
      {"id": "conv5", "type": "conv2d", "channels": 136, "kernel": 3, "padding": 1, "bias": true},
      {"id": "act5", "type": "relu"},
      {"id": "pool5", "type": "max_pool2d", "kernel": 2},
      {"id": "flat", "type": "flatten"},
      {"id": "fc", "type": "linear", "features": "classes"}]})");
  const ValueShape input = {.h = 32, .w = 32, .c = 3};
  const ShapedNetwork shaped = infer_shapes(network, input, 10);
  int pooled = 0, gated = 0;
  for (const std::string& line :
       lower(shaped, ParameterLayout(shaped), cuda_device(), {.batch = 9, .dtype = DType::kBF16}).lines()) {
    pooled += line.find("_max2_arg2") != std::string::npos;
    gated += line.find("_drelu") != std::string::npos;
  }
  EXPECT_EQ(pooled, cuda_device().sm == 90 ? 3 : 0);
  EXPECT_EQ(gated, cuda_device().sm == 90 ? 4 : 2);
  const std::vector<float> images = test::random_images(9 * input.elements(), 1);
  const std::vector<int32_t> labels = test::some_labels(9, 10);
  for (const DType precision : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(name_of(precision));
    const auto make = [&](std::vector<std::string> off) {
      return StepProbe(network, input, 10, 9, cuda_device(),
                       {.precision = precision, .fusions_off = std::move(off), .seed = 2});
    };
    StepProbe fused = make({}), unfused = make({"all"});
    for (StepProbe* probe : {&fused, &unfused}) {
      probe->forward(images, labels);
      probe->backward();
    }
    const bool exact = precision == DType::kF32;  // a maximum may be another one where sums round otherwise
    EXPECT_NEAR(fused.loss(), unfused.loss(), exact ? 1e-5 : 1e-2);
    test::expect_close_gradients(fused.gradients(), unfused.gradients(), exact ? 1e-3 : 0.1);
  }
}

TEST_F(NnCuda, FusedStepMatchesUnfusedStep) {
  for (const auto& [name, precision] :
       {std::pair{"resnet18", DType::kF32}, {"resnet18", DType::kBF16}, {"mobilenet_v2", DType::kF32}}) {
    SCOPED_TRACE(std::string(name) + " " + name_of(precision));
    const auto make = [&, name = name, precision = precision](std::vector<std::string> off) {
      return StepProbe(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 8, cuda_device(),
                       {.precision = precision, .fusions_off = std::move(off), .seed = 2});
    };
    StepProbe fused = make({}), unfused = make({"all"});
    const std::vector<float> images = test::random_images(8 * 32 * 32 * 3, 1);
    const std::vector<int32_t> labels = test::some_labels(8, 10);
    for (StepProbe* probe : {&fused, &unfused}) {
      probe->forward(images, labels);
      probe->backward();
    }
    // Masks are not handed over here: a kink may fall to the other side.
    EXPECT_NEAR(fused.loss(), unfused.loss(), precision == DType::kF32 ? 1e-4 : 5e-2);
    if (precision == DType::kF32) {
      test::expect_close_gradients(fused.gradients(), unfused.gradients(), 1e-2);
      continue;
    }
    // In bf16 both are a rounding away from fp32 at every tensor; fusing leaves some out, so it is no
    // further.
    StepProbe exact(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 8, cuda_device(),
                    {.fusions_off = {"all"}, .seed = 2});
    exact.forward(images, labels);
    exact.backward();
    const StepProbe::Tensors got = fused.gradients(), other = unfused.gradients(), wanted = exact.gradients();
    double largest = 0;
    for (const auto& [id, values] : wanted) largest = std::max(largest, test::norm_of(values));
    for (const auto& [id, values] : wanted) {
      EXPECT_LE(
          test::distance(got.at(id), values),
          1.5 * test::distance(other.at(id), values) + 0.05 * std::max(test::norm_of(values), 0.01 * largest))
          << id << ", norm " << test::norm_of(values);
    }
  }
}

struct Outcome {
  std::vector<float> losses;
  std::string weights;
  EvalResult eval;
};

Outcome run_trainer(const Device& device, const TrainOptions& options, const DataPair& data) {
  Outcome result;
  Trainer trainer(test::tiny_network(true), data, device, options);
  trainer.train([&](const DrainRecord& r) {
    result.losses.insert(result.losses.end(), r.step_losses.begin(), r.step_losses.end());
    return true;
  });
  result.eval = trainer.evaluate();
  const std::string path = test::temp_path("w");
  trainer.save_weights(path);
  result.weights = test::file_bytes(path);
  return result;
}

TrainOptions options_of(DType precision) {
  TrainOptions o;
  o.precision = precision;
  o.batch = 32;
  o.epochs = 8;
  o.lr = 0.05f;
  o.augment_pad = 0;
  o.augment_flip = Flip::kNone;
  o.drain_every = 7;
  return o;
}

// Statistics and batchnorm parameters as if the network were trained; the convolutions do the batchnorms.
TEST_F(NnCuda, FusedInferenceMatchesUnfused) {
  for (const char* name : {"small_cnn", "resnet18", "resnet18_smooth", "mobilenet_v2"}) {
    SCOPED_TRACE(name);
    const auto logits = [&](const Device& device, DType precision, std::vector<std::string> off) {
      StepProbe probe(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 8, device,
                      {.precision = precision, .fusions_off = std::move(off), .training = false, .seed = 2});
      StepProbe::Tensors tensors = probe.parameters();
      uint64_t seed = 3;
      for (auto& [id, values] : tensors) {
        ++seed;
        if (!tensors.contains(id.substr(0, id.rfind('.')) + ".running_var")) continue;
        for (size_t i = 0; i < values.size(); ++i) values[i] += 0.3f * test::draw_uniform(seed, i);
      }
      probe.set_parameters(tensors);
      probe.forward(test::random_images(8 * 32 * 32 * 3, 1), test::some_labels(8, 10));
      return probe.logits();
    };
    const std::vector<float> wanted = logits(cuda_device(), DType::kF32, {"all"});
    const double norm = test::norm_of(wanted);
    EXPECT_GT(norm, 0.0);
    EXPECT_LE(test::distance(logits(cuda_device(), DType::kF32, {}), wanted), 1e-4 * norm);
    EXPECT_LE(test::distance(logits(cpu_device(), DType::kF32, {}), wanted), 1e-4 * norm);
    // Of two bf16 runs the fused one rounds less.
    const double unfused = test::distance(logits(cuda_device(), DType::kBF16, {"all"}), wanted);
    EXPECT_LE(test::distance(logits(cuda_device(), DType::kBF16, {}), wanted), 1.5 * unfused + 0.01 * norm);
  }
}

TEST_F(NnCuda, RecordedStepsGiveTheSameBitsAsLaunchedOnes) {
  const DataPair data = test::tiny_data(250, 41);
  for (const DType precision : {DType::kF32, DType::kBF16}) {
    TrainOptions o = options_of(precision);
    const Outcome recorded = run_trainer(cuda_device(), o, data), again = run_trainer(cuda_device(), o, data);
    o.cuda_graph = false;
    const Outcome launched = run_trainer(cuda_device(), o, data);
    EXPECT_EQ(recorded.losses, again.losses) << name_of(precision);
    EXPECT_EQ(recorded.weights, again.weights) << name_of(precision);
    EXPECT_EQ(recorded.losses, launched.losses) << name_of(precision);
    EXPECT_EQ(recorded.weights, launched.weights) << name_of(precision);
  }
}

TEST_F(NnCuda, LearnsInEitherPrecision) {
  const DataPair data = test::tiny_data(256, 101);
  for (const DType precision : {DType::kF32, DType::kBF16}) {
    const Outcome got = run_trainer(cuda_device(), options_of(precision), data);
    EXPECT_GT(got.eval.accuracy, 0.9) << name_of(precision);
    EXPECT_EQ(got.eval.images, 101);
  }
}

TEST_F(NnCuda, FirstStepsLossIsTheCpus) {
  const DataPair data = test::tiny_data(250, 41);
  TrainOptions o = options_of(DType::kF32);
  o.augment_pad = 2;
  o.augment_flip = Flip::kRandom;
  o.augment_cutout = 3;
  o.max_steps = 2;
  const Outcome cpu = run_trainer(cpu_device(), o, data), gpu = run_trainer(cuda_device(), o, data);
  EXPECT_NEAR(cpu.losses[0], gpu.losses[0], 1e-5);
  EXPECT_NEAR(cpu.losses[1], gpu.losses[1], 1e-3);
}

TEST_F(NnCuda, WeightsMoveBetweenDevices) {
  const DataPair data = test::tiny_data(64, 41);
  Trainer gpu(test::tiny_network(true), data, cuda_device(), options_of(DType::kF32));
  gpu.train({});
  const std::string path = test::temp_path("w");
  gpu.save_weights(path);
  Trainer cpu(test::tiny_network(true), data, cpu_device(), options_of(DType::kF32));
  cpu.load_weights(path);
  EXPECT_NEAR(cpu.evaluate().loss, gpu.evaluate().loss, 1e-4);
}

}  // namespace
}  // namespace kiln
