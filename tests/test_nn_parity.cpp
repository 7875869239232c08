// One training step on the CPU against PyTorch in float64. tests/goldens/<network>.json has the loss, the
// logits, and of every gradient and running statistic the norm and 16 sums of all its elements with
// pseudo-random signs; the mean square of such sums' differences estimates the squared norm of the
// difference. bench/peers/parity_reference.py wrote them without kiln; docs/checkpoints.md has the rules.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tests/support/parity_inputs.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using Json = nlohmann::json;

constexpr double kBound = 1e-4;  // of gradients, statistics and logits
constexpr double kLossBound = 1e-5;
// Where each side decides its own kinks: one element of a deep layer that falls to the other side moves a
// gradient by 0.2 to 2 %.
constexpr double kOwnKinksBound = 5e-2;

struct Case {
  const char* network;
  bool fused;
  const char* impl = "";
};

Json load_golden(const std::string& network) {
  return Json::parse(test::file_bytes(std::string(KILN_GOLDENS) + "/" + network + ".json"));
}

// Bit j of the result: element i counts with a minus in sum j.
uint32_t signs(uint32_t i) {
  uint32_t h = i + 1;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// Estimate of the norm of the difference between `values` and the golden tensor.
double distance_to(const Json& golden, const std::vector<float>& values) {
  std::vector<double> sums(golden.at("sums").size(), 0.0);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t minus = signs(static_cast<uint32_t>(i));
    for (size_t j = 0; j < sums.size(); ++j) sums[j] += (minus >> j) & 1 ? -values[i] : values[i];
  }
  double squares = 0;
  for (size_t j = 0; j < sums.size(); ++j) {
    const double d = sums[j] - golden["sums"][j].get<double>();
    squares += d * d;
  }
  const double by_sums = std::sqrt(squares / static_cast<double>(sums.size()));
  return std::max(by_sums, std::abs(test::norm_of(values) - golden.at("norm").get<double>()));
}

// Of all tensors of `golden`: each one's distance is at most `bound` of max(its norm, 1 % of the largest
// norm).
void expect_near(const Json& golden, const StepProbe::Tensors& got, double bound) {
  double largest = 0;
  for (const Json& tensor : golden) largest = std::max(largest, tensor.at("norm").get<double>());
  double worst = 0;
  for (const auto& [name, wanted] : golden.items()) {
    ASSERT_TRUE(got.contains(name)) << name;
    const double error =
        distance_to(wanted, got.at(name)) / std::max(wanted.at("norm").get<double>(), 0.01 * largest);
    EXPECT_LE(error, bound) << name;
    worst = std::max(worst, error);
  }
  std::printf("  worst of %zu tensors: %.1e of its norm, bound %.0e\n", golden.size(), worst, bound);
}

// Puts the elements that lie so near to a kink that fp32 may see them on its other side where float64 does.
void take_golden_sides(const Json& golden, StepProbe* probe) {
  StepProbe::Kinks kinks = probe->kinks();
  for (const auto& [layer, near] : golden.at("near_kinks").items()) {
    const bool pool = kinks.contains(layer + ".arg");
    std::vector<uint8_t>& sides = kinks.at(layer + (pool ? ".arg" : ".y"));
    for (const Json& entry : near) {
      const uint8_t side = entry[1].get<uint8_t>();
      sides.at(entry[0].get<size_t>()) = pool ? side : side == 1;
    }
  }
  probe->impose_kinks(kinks);
}

class NnParity : public ::testing::TestWithParam<Case> {};

TEST_P(NnParity, StepMatchesPyTorchInFloat64) {
  const Case& c = GetParam();
  const Json golden = load_golden(c.network);
  StepProbe::Options options;
  options.impl = ImplChoice(c.impl);
  options.seed = golden.at("seed").get<uint64_t>();
  if (!c.fused) options.fusions_off = {"all"};
  const int batch = golden.at("batch").get<int>();
  StepProbe probe(builtin_network(c.network), test::kParityImage, test::kParityClasses, batch, cpu_device(),
                  options);

  const test::ParityBatch b = test::parity_batch(options.seed, batch, 0);
  probe.forward(b.images, b.labels);
  EXPECT_NEAR(probe.loss(), golden.at("loss").get<double>(), kLossBound);
  const std::vector<float> logits = probe.logits(), wanted = golden.at("logits").get<std::vector<float>>();
  ASSERT_EQ(logits.size(), wanted.size());
  EXPECT_LE(test::distance(logits, wanted), kBound * test::norm_of(wanted));
  expect_near(golden.at("statistics"), probe.parameters(), kBound);

  const bool kinks = !golden.at("near_kinks").empty();
  if (kinks && !c.fused) take_golden_sides(golden, &probe);
  probe.backward();
  const Json& gradients = golden.at("gradients");
  const StepProbe::Tensors got = probe.gradients();
  EXPECT_EQ(got.size(), gradients.size());
  expect_near(gradients, got, kinks && c.fused ? kOwnKinksBound : kBound);
}

INSTANTIATE_TEST_SUITE_P(Networks, NnParity,
                         ::testing::Values(Case{"small_cnn", true}, Case{"small_cnn", false},
                                           Case{"small_cnn", false, "*=cpu_naive"},
                                           Case{"small_cnn_smooth", true}, Case{"small_cnn_smooth", false},
                                           Case{"resnet18", true}, Case{"resnet18", false},
                                           Case{"resnet18_smooth", true}, Case{"resnet18_smooth", false},
                                           Case{"mobilenet_v1", true}, Case{"mobilenet_v1", false},
                                           Case{"mobilenet_v1_smooth", true},
                                           Case{"mobilenet_v1_smooth", false}, Case{"mobilenet_v2", true},
                                           Case{"mobilenet_v2", false}, Case{"mobilenet_v2_smooth", true},
                                           Case{"mobilenet_v2_smooth", false}),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           return std::string(info.param.network) +
                                  (info.param.fused ? "_fused" : "_unfused") +
                                  (*info.param.impl ? "_cpu_naive" : "");
                         });

}  // namespace
}  // namespace kiln
