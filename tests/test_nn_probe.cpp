// One training step against itself: central differences, fused against unfused, fast against naive.
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::tiny_network;

constexpr int kBatch = 5, kClasses = 4;
constexpr ValueShape kInput = {.h = 8, .w = 8, .c = 3};

StepProbe make_probe(const NetworkDescription& network, const char* impl,
                     std::vector<std::string> fusions_off, bool training = true) {
  return StepProbe(
      network, kInput, kClasses, kBatch, cpu_device(),
      {.impl = ImplChoice(impl), .fusions_off = std::move(fusions_off), .training = training, .seed = 3});
}

const std::vector<float>& images() {
  static const std::vector<float> values = test::random_images(kBatch * kInput.elements(), 5);
  return values;
}
const std::vector<int32_t>& labels() {
  static const std::vector<int32_t> values = test::some_labels(kBatch, kClasses);
  return values;
}

double loss_at(StepProbe* probe, const StepProbe::Tensors& parameters) {
  probe->set_parameters(parameters);
  probe->forward(images(), labels());
  return probe->loss();
}

// d loss / d h at h = 0 along `direction`, by central differences.
double slope(StepProbe* probe, const StepProbe::Tensors& at, const StepProbe::Tensors& direction, double h) {
  StepProbe::Tensors up = at, down = at;
  for (const auto& [name, d] : direction) {
    for (size_t i = 0; i < d.size(); ++i) {
      up[name][i] = static_cast<float>(at.at(name)[i] + h * d[i]);
      down[name][i] = static_cast<float>(at.at(name)[i] - h * d[i]);
    }
  }
  return (loss_at(probe, up) - loss_at(probe, down)) / (2 * h);
}

// The gradient of each parameter against the slope along the gradient itself and along a random direction.
void check_gradients(bool kinks, std::vector<std::string> fusions_off, double relative) {
  StepProbe probe = make_probe(tiny_network(kinks), "*=cpu_naive", std::move(fusions_off));
  const StepProbe::Tensors parameters = probe.parameters();
  probe.forward(images(), labels());
  probe.backward();
  const StepProbe::Tensors gradients = probe.gradients();
  const double h = kinks ? 1e-3 : 1e-2, noise = 2e-6 / h;  // of a loss in fp32
  uint64_t index = 0;
  for (const auto& [name, gradient] : gradients) {
    const double norm = test::norm_of(gradient);
    std::vector<float> along(gradient.size()), random(gradient.size());
    double random_slope = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      along[i] = norm > 0 ? static_cast<float>(gradient[i] / norm) : 0.0f;
      random[i] = test::draw_uniform(17, index++) / std::sqrt(static_cast<float>(gradient.size()));
      random_slope += static_cast<double>(random[i]) * gradient[i];
    }
    EXPECT_NEAR(slope(&probe, parameters, {{name, along}}, h), norm, relative * norm + noise) << name;
    EXPECT_NEAR(slope(&probe, parameters, {{name, random}}, h), random_slope, relative * norm + noise)
        << name;
  }
}

TEST(NnProbe, GradientsOfASmoothNetworkMatchCentralDifferences) { check_gradients(false, {}, 2e-3); }
TEST(NnProbe, GradientsOfASmoothNetworkUnfusedMatchCentralDifferences) {
  check_gradients(false, {"all"}, 2e-3);
}
TEST(NnProbe, GradientsOfANetworkWithKinksMatchCentralDifferences) { check_gradients(true, {}, 2e-2); }
TEST(NnProbe, GradientsOfANetworkWithKinksUnfusedMatchCentralDifferences) {
  check_gradients(true, {"all"}, 2e-2);
}

class NnFusion : public ::testing::TestWithParam<const char*> {};

TEST_P(NnFusion, SwitchedOffChangesNothingButRounding) {
  for (const char* impl : {"*=cpu_naive", "*=cpu_fast"}) {
    StepProbe fused = make_probe(tiny_network(true), impl, {});
    StepProbe unfused = make_probe(tiny_network(true), impl, {GetParam()});
    for (StepProbe* probe : {&fused, &unfused}) {
      probe->forward(images(), labels());
      probe->backward();
    }
    EXPECT_NEAR(fused.loss(), unfused.loss(), 1e-6) << impl;
    test::expect_close_gradients(unfused.gradients(), fused.gradients(), 1e-5);
  }
}
INSTANTIATE_TEST_SUITE_P(Each, NnFusion, ::testing::Values("bn_relu", "add_grad_alias", "dgrad_acc", "all"));

TEST(NnProbe, FastStepMatchesNaiveStep) {
  for (bool kinks : {false, true}) {
    StepProbe naive = make_probe(tiny_network(kinks), "*=cpu_naive", {"all"});
    StepProbe fast = make_probe(tiny_network(kinks), "*=cpu_fast", {"all"});
    fast.set_parameters(naive.parameters());
    for (StepProbe* probe : {&naive, &fast}) probe->forward(images(), labels());
    EXPECT_NEAR(naive.loss(), fast.loss(), 1e-5);
    fast.impose_kinks(naive.kinks());
    for (StepProbe* probe : {&naive, &fast}) probe->backward();
    test::expect_close_gradients(fast.gradients(), naive.gradients(), 1e-4);
  }
}

TEST(NnProbe, ImposedKinksDecideTheBackwardPass) {
  StepProbe probe = make_probe(tiny_network(true), "*=cpu_naive", {"all"});
  probe.forward(images(), labels());
  StepProbe::Kinks kinks = probe.kinks();
  ASSERT_EQ(kinks.size(), 3u);  // act1.y, act2.y, pool.arg
  for (auto& [name, bytes] : kinks) std::fill(bytes.begin(), bytes.end(), 0);
  probe.impose_kinks({{"act1.y", kinks.at("act1.y")}});
  probe.backward();
  EXPECT_EQ(test::norm_of(probe.gradients().at("conv1.weight")), 0.0);
  EXPECT_GT(test::norm_of(probe.gradients().at("conv3.weight")), 0.0);
}

TEST(NnProbe, UpdateIsPyTorchsSgd) {
  StepProbe probe(tiny_network(false), kInput, kClasses, kBatch, cpu_device(),
                  {.momentum = 0.9f, .weight_decay = 0.01f, .nesterov = true, .seed = 3});
  StepProbe::Tensors expected = probe.parameters(), velocity;
  for (int step = 0; step < 3; ++step) {
    probe.forward(images(), labels());
    probe.backward();
    const StepProbe::Tensors before = probe.parameters();
    for (const auto& [name, gradient] : probe.gradients()) {
      const bool decayed = name.ends_with(".weight") && name.find("bn") == std::string::npos;
      std::vector<float>& v = velocity[name];
      v.resize(gradient.size(), 0.0f);
      for (size_t i = 0; i < gradient.size(); ++i) {
        const float g = gradient[i] + (decayed ? 0.01f * before.at(name)[i] : 0.0f);
        v[i] = 0.9f * v[i] + g;
        expected[name][i] = before.at(name)[i] - 0.1f * (g + 0.9f * v[i]);
      }
    }
    probe.update(0.1f);
    for (const auto& [name, v] : velocity) {
      EXPECT_LE(test::distance(probe.parameters().at(name), expected.at(name)), 1e-6 * (1 + test::norm_of(v)))
          << name;
    }
  }
}

TEST(NnProbe, InferenceUsesRunningStatistics) {
  StepProbe probe = make_probe(tiny_network(true), "*=cpu_naive", {}, /*training=*/false);
  probe.forward(images(), labels());
  const std::vector<float> before = probe.logits();
  StepProbe::Tensors shifted = {{"bn1.running_mean", std::vector<float>(6, 0.5f)}};
  probe.set_parameters(shifted);
  probe.forward(images(), labels());
  EXPECT_GT(test::distance(before, probe.logits()), 1e-3);
}

}  // namespace
}  // namespace kiln
