// One training step against itself: central differences, fused against unfused, fast against naive.
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::tiny_mobile_network;
using test::tiny_network;

constexpr int kBatch = 5, kClasses = 4;
constexpr ValueShape kInput = {.h = 8, .w = 8, .c = 3};

StepProbe make_probe(const NetworkDescription& network, const char* impl,
                     std::vector<std::string> fusions_off, bool training = true) {
  return StepProbe(network, kInput, kClasses, kBatch, cpu_device(),
                   {.impl = ImplChoice(impl),
                    .fusions_off = std::move(fusions_off),
                    .fusions_on = {"conv_stats"},
                    .training = training,
                    .seed = 3});
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

// So large that relu6 caps some.
void widen(StepProbe* probe) {
  StepProbe::Tensors parameters = probe->parameters();
  for (const char* name : {"bn0.weight", "bn2.weight"}) {
    for (float& gamma : parameters.at(name)) gamma = 4;
  }
  probe->set_parameters(parameters);
}

// The gradient of each parameter against the slope along the gradient itself and along a random direction.
void check_gradients(const NetworkDescription& network, bool kinks, std::vector<std::string> fusions_off,
                     double relative) {
  StepProbe probe = make_probe(network, "*=cpu_naive", std::move(fusions_off));
  if (kinks && network.name == "tiny_mobile") widen(&probe);
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

TEST(NnProbe, GradientsOfASmoothNetworkMatchCentralDifferences) {
  check_gradients(tiny_network(false), false, {}, 2e-3);
  check_gradients(tiny_mobile_network(false), false, {}, 2e-3);
}
TEST(NnProbe, GradientsOfASmoothNetworkUnfusedMatchCentralDifferences) {
  check_gradients(tiny_network(false), false, {"all"}, 2e-3);
  check_gradients(tiny_mobile_network(false), false, {"all"}, 2e-3);
}
TEST(NnProbe, GradientsOfANetworkWithKinksMatchCentralDifferences) {
  check_gradients(tiny_network(true), true, {}, 2e-2);
  check_gradients(tiny_mobile_network(true), true, {}, 2e-2);
}
TEST(NnProbe, GradientsOfANetworkWithoutBatchnormsMatchCentralDifferences) {
  check_gradients(test::tiny_plain_network(), true, {}, 2e-2);
}
TEST(NnProbe, GradientsOfANetworkWithKinksUnfusedMatchCentralDifferences) {
  check_gradients(tiny_network(true), true, {"all"}, 2e-2);
  check_gradients(tiny_mobile_network(true), true, {"all"}, 2e-2);
}

class NnFusion : public ::testing::TestWithParam<const char*> {};

TEST_P(NnFusion, SwitchedOffChangesNothingButRounding) {
  for (const NetworkDescription& network : {tiny_network(true), tiny_mobile_network(true),
                                            test::tiny_plain_network(), test::tiny_pooled_network()}) {
    for (const char* impl : {"*=cpu_naive", "*=cpu_fast"}) {
      SCOPED_TRACE(network.name + " " + impl);
      StepProbe fused = make_probe(network, impl, {});
      StepProbe unfused = make_probe(network, impl, {GetParam()});
      for (StepProbe* probe : {&fused, &unfused}) {
        probe->forward(images(), labels());
        probe->backward();
      }
      EXPECT_NEAR(fused.loss(), unfused.loss(), 1e-6);
      test::expect_close_gradients(unfused.gradients(), fused.gradients(), 2e-5);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Each, NnFusion,
                         ::testing::Values("bn_act", "bn_residual", "bn_pool", "add_grad_alias", "dgrad_acc",
                                           "conv_pool", "conv_stats", "dgrad_act", "all"));

TEST(NnProbe, FastStepMatchesNaiveStep) {
  for (const NetworkDescription& network :
       {tiny_network(false), tiny_network(true), tiny_mobile_network(false), tiny_mobile_network(true)}) {
    SCOPED_TRACE(network.name);
    StepProbe naive = make_probe(network, "*=cpu_naive", {"all"});
    StepProbe fast = make_probe(network, "*=cpu_fast", {"all"});
    if (network.name == "tiny_mobile") widen(&naive);
    fast.set_parameters(naive.parameters());
    for (StepProbe* probe : {&naive, &fast}) probe->forward(images(), labels());
    EXPECT_NEAR(naive.loss(), fast.loss(), 1e-5);
    fast.impose_kinks(naive.kinks());
    for (StepProbe* probe : {&naive, &fast}) probe->backward();
    test::expect_close_gradients(fast.gradients(), naive.gradients(), 1e-4);
  }
}

// Positions that a batchnorm saved in 2 bits are read and imposed a byte each, as a pool's own.
TEST(NnProbe, PositionsOfAFusedPoolAreThoseOfThePool) {
  StepProbe fused = make_probe(test::tiny_pooled_network(), "*=cpu_naive", {});
  StepProbe unfused = make_probe(test::tiny_pooled_network(), "*=cpu_naive", {"bn_pool"});
  for (StepProbe* probe : {&fused, &unfused}) probe->forward(images(), labels());
  const StepProbe::Kinks kinks = fused.kinks();
  for (const char* name : {"pool1.arg", "pool3.arg"}) {
    EXPECT_EQ(kinks.at(name), unfused.kinks().at(name)) << name;
  }
  StepProbe::Kinks other = {{"pool3.arg", kinks.at("pool3.arg")}};
  for (uint8_t& position : other.at("pool3.arg")) position = static_cast<uint8_t>(3 - position);
  for (StepProbe* probe : {&fused, &unfused}) {
    probe->impose_kinks(other);
    probe->backward();
  }
  EXPECT_EQ(fused.kinks().at("pool3.arg"), other.at("pool3.arg"));
  test::expect_close_gradients(unfused.gradients(), fused.gradients(), 2e-5);
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

TEST(NnProbe, ImposedKinksOfRelu6PassBetweenTheBoundsOnly) {
  StepProbe probe = make_probe(tiny_mobile_network(true), "*=cpu_naive", {"all"});
  widen(&probe);
  probe.forward(images(), labels());
  const StepProbe::Kinks kinks = probe.kinks();
  std::vector<std::string> names;
  for (const auto& [name, bytes] : kinks) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"act0.y", "act1.y", "act2.y", "pool.arg"}));
  EXPECT_EQ(kinks.at("pool.arg").size(), kBatch * 6 * sizeof(int32_t));
  const std::vector<float> y = probe.activation("act0");
  std::vector<uint8_t> other = kinks.at("act0.y");
  int capped = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_EQ(other[i], y[i] > 0 && y[i] < 6);
    capped += y[i] == 6;
    other[i] = !other[i];
  }
  EXPECT_GT(capped, 0);
  probe.impose_kinks({{"act0.y", other}});
  EXPECT_EQ(probe.kinks().at("act0.y"), other);
  const std::vector<float> moved = probe.activation("act0");
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_TRUE(moved[i] >= 0 && moved[i] <= 6);
    ASSERT_NEAR(moved[i], y[i], y[i] == 0 || y[i] == 6 ? 1e-5 : 3.0);
  }
}

TEST(NnProbe, UpdateIsPyTorchsSgd) {
  StepProbe probe(tiny_network(false), kInput, kClasses, kBatch, cpu_device(),
                  {.optimizer = {.weight_decay = 0.01f, .momentum = 0.9f, .nesterov = true}, .seed = 3});
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

TEST(NnProbe, UpdateIsPyTorchsAdamw) {
  const OptimizerOptions adamw = {
      .kind = Optimizer::kAdamw, .weight_decay = 0.1f, .beta1 = 0.8f, .beta2 = 0.95f, .eps = 1e-6f};
  StepProbe probe(tiny_network(false), kInput, kClasses, kBatch, cpu_device(),
                  {.optimizer = adamw, .seed = 3});
  std::map<std::string, std::vector<double>> m, v;
  for (int step = 1; step <= 3; ++step) {
    probe.forward(images(), labels());
    probe.backward();
    StepProbe::Tensors expected = probe.parameters();
    for (const auto& [name, gradient] : probe.gradients()) {
      const bool decayed = name.ends_with(".weight") && name.find("bn") == std::string::npos;
      m[name].resize(gradient.size(), 0.0);
      v[name].resize(gradient.size(), 0.0);
      for (size_t i = 0; i < gradient.size(); ++i) {
        const double g = gradient[i];
        double& m_i = m[name][i] = 0.8 * m[name][i] + 0.2 * g;
        double& v_i = v[name][i] = 0.95 * v[name][i] + 0.05 * g * g;
        double w = expected[name][i];
        if (decayed) w *= 1 - 0.01 * 0.1;
        w -= 0.01 * (m_i / (1 - std::pow(0.8, step))) / (std::sqrt(v_i / (1 - std::pow(0.95, step))) + 1e-6);
        expected[name][i] = static_cast<float>(w);
      }
    }
    probe.update(0.01f);
    const StepProbe::Tensors got = probe.parameters();
    for (const auto& [name, moment] : m) {
      EXPECT_LE(test::distance(got.at(name), expected.at(name)),
                1e-6 * (1 + test::norm_of(expected.at(name))))
          << name << " step " << step;
    }
  }
}

TEST(NnProbe, ClippingScalesTheUpdateToTheNorm) {
  for (const Optimizer kind : {Optimizer::kSgd, Optimizer::kAdamw}) {
    const auto moved = [&](float clip) {
      StepProbe probe(tiny_network(false), kInput, kClasses, kBatch, cpu_device(),
                      {.optimizer = {.kind = kind, .eps = 10.0f, .clip_norm = clip}, .seed = 3});
      const StepProbe::Tensors before = probe.parameters();
      probe.forward(images(), labels());
      probe.backward();
      double square = 0;
      for (const auto& [name, gradient] : probe.gradients()) square += std::pow(test::norm_of(gradient), 2);
      probe.update(0.1f);
      double way = 0;
      for (const auto& [name, values] : probe.parameters()) {
        if (name.find("running") == std::string::npos) {
          way += std::pow(test::distance(values, before.at(name)), 2);
        }
      }
      return std::pair{std::sqrt(square), std::sqrt(way)};
    };
    const auto [norm, free] = moved(0);
    const auto [same_norm, clipped] = moved(static_cast<float>(norm / 4));
    EXPECT_DOUBLE_EQ(norm, same_norm);
    // sgd's step is the gradient; adamw's, with so large an eps, nearly so.
    EXPECT_NEAR(clipped / free, 0.25, kind == Optimizer::kSgd ? 1e-3 : 5e-2);
    EXPECT_NEAR(moved(static_cast<float>(2 * norm)).second, free, 1e-6 * free);
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
