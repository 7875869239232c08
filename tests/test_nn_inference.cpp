// Folding batchnorms into the layers before them, and InferenceSession.
#include "nn/inference.h"

#include "nn/checkpoint.h"
#include "nn/fold_batchnorm.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;
using test::temp_path;

constexpr int kClasses = 4;
constexpr ValueShape kInput = {.h = 8, .w = 8, .c = 3};

// A network's tensors with statistics and batchnorm parameters as if it were trained.
struct Trained {
  ShapedNetwork shaped;
  std::unique_ptr<Backend> backend = make_backend(cpu_device());
  Network network;

  Trained(const NetworkDescription& description, const ValueShape& input, int classes)
      : shaped(infer_shapes(description, input, classes)), network(backend.get(), shaped, DType::kF32, 9) {
    std::vector<NamedTensor> parameters = network.read_slab(Home::kMaster);
    std::vector<NamedTensor> statistics = network.read_statistics();
    uint64_t index = 0;
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (network.layout().parameters()[i].bound > 0) continue;
      for (float& v : parameters[i].values) v += 0.5f * test::draw_uniform(31, index++);
    }
    for (NamedTensor& t : statistics) {
      for (float& v : t.values) v += 0.5f * test::draw_uniform(31, index++);
    }
    network.write_slab(Home::kMaster, parameters);
    network.write_statistics(statistics);
  }
};

std::vector<float> logits_of(const NetworkDescription& description, const ValueShape& input, int classes,
                             const std::vector<NamedTensor>& parameters,
                             const std::vector<NamedTensor>& statistics, int batch) {
  StepProbe probe(description, input, classes, batch, cpu_device(), {.training = false});
  StepProbe::Tensors tensors;
  for (const NamedTensor& t : parameters) tensors[t.name] = t.values;
  for (const NamedTensor& t : statistics) tensors[t.name] = t.values;
  probe.set_parameters(tensors);
  probe.forward(test::random_images(batch * input.elements(), 5), test::some_labels(batch, classes));
  return probe.logits();
}

void check_folding(const NetworkDescription& description, const ValueShape& input, int classes,
                   size_t batchnorms_left) {
  SCOPED_TRACE(description.name);
  const Trained trained(description, input, classes);
  const std::vector<NamedTensor> parameters = trained.network.read_slab(Home::kMaster);
  const std::vector<NamedTensor> statistics = trained.network.read_statistics();
  const FoldedNetwork folded = fold_batchnorm(trained.shaped, parameters, statistics);
  size_t batchnorms = 0;
  for (const LayerDescription& layer : folded.description.layers) batchnorms += layer.type == "batchnorm";
  EXPECT_EQ(batchnorms, batchnorms_left);
  EXPECT_EQ(folded.statistics.size(), 2 * batchnorms_left);
  const ParameterLayout layout(infer_shapes(folded.description, input, classes));
  ASSERT_EQ(folded.parameters.size(), layout.parameters().size());
  for (size_t i = 0; i < folded.parameters.size(); ++i) {
    EXPECT_EQ(folded.parameters[i].name, layout.parameters()[i].name);
    EXPECT_EQ(folded.parameters[i].shape, layout.parameters()[i].shape);
  }
  const std::vector<float> wanted = logits_of(description, input, classes, parameters, statistics, 2);
  const std::vector<float> got =
      logits_of(folded.description, input, classes, folded.parameters, folded.statistics, 2);
  EXPECT_GT(test::norm_of(wanted), 0.0);
  EXPECT_LE(test::distance(got, wanted), 1e-4 * test::norm_of(wanted));
}

TEST(NnFold, LogitsOfTheBuiltinNetworksStay) {
  for (const std::string& name : builtin_network_names()) {
    check_folding(builtin_network(name), {.h = 32, .w = 32, .c = 3}, 10, 0);
  }
}

TEST(NnFold, OnlyWhatAloneReadsALinearLayerIsFolded) {
  check_folding(test::tiny_network(true), kInput, kClasses, 0);
  check_folding(test::tiny_mobile_network(true), kInput, kClasses, 1);  // bn3, whose input is read twice
  check_folding(parse_network(R"({"name": "odd", "layers": [
      {"id": "bn_in", "type": "batchnorm"},
      {"id": "conv", "type": "conv2d", "channels": 5, "kernel": 3, "bias": true},
      {"id": "bn1", "type": "batchnorm", "eps": 0.01},
      {"id": "bn2", "type": "batchnorm"},
      {"id": "relu", "type": "relu"},
      {"id": "bn3", "type": "batchnorm"},
      {"id": "flat", "type": "flatten"},
      {"id": "fc", "type": "linear", "features": "classes"},
      {"id": "bn4", "type": "batchnorm"}]})"),
                kInput, kClasses, 2);  // bn_in and bn3
}

class NnInference : public ::testing::Test {
 protected:
  static std::string weights_of(const NetworkDescription& description) {
    const Trained trained(description, kInput, kClasses);
    const std::string path = temp_path("w.safetensors");
    save_weights(trained.network, path);
    return path;
  }
  static InferenceSession session(const NetworkDescription& description, const std::string& weights,
                                  bool fold) {
    return InferenceSession(description, weights, kInput, kClasses, {0.3f, 0.31f, 0.29f},
                            {0.2f, 0.21f, 0.19f}, cpu_device(), {.fold = fold});
  }
};

TEST_F(NnInference, LogitsAreTheTrainersEvaluation) {
  const NetworkDescription network = test::tiny_mobile_network(true);
  const std::string weights = weights_of(network);
  const DataPair data = test::tiny_data(8, 37);
  Trainer trainer(network, data, cpu_device(), {});
  trainer.load_weights(weights);
  const EvalResult wanted = trainer.evaluate();
  for (const bool fold : {false, true}) {
    InferenceSession s = session(network, weights, fold);
    const std::vector<float> logits = s.predict(data.test.images.data(), data.test.count(), 16);
    ASSERT_EQ(logits.size(), 37u * kClasses);
    double loss = 0;
    long long correct = 0;
    for (int i = 0; i < 37; ++i) {
      const float* row = logits.data() + i * kClasses;
      double sum = 0;
      for (int k = 0; k < kClasses; ++k) sum += std::exp(static_cast<double>(row[k]));
      loss += std::log(sum) - row[data.test.labels[i]];
      correct += std::max_element(row, row + kClasses) - row == data.test.labels[i];
    }
    EXPECT_NEAR(loss / 37, wanted.loss, 1e-4 * wanted.loss);
    EXPECT_EQ(correct, wanted.correct);
  }
}

TEST_F(NnInference, BatchSizeAndPixelTypeChangeNothingButRounding) {
  const NetworkDescription network = test::tiny_network(true);
  InferenceSession s = session(network, weights_of(network), true);
  const DataPair data = test::tiny_data(4, 11);
  const std::vector<float> whole = s.predict(data.test.images.data(), 11, 11);
  EXPECT_LE(test::distance(s.predict(data.test.images.data(), 11, 4), whole), 1e-5 * test::norm_of(whole));
  EXPECT_LE(test::distance(s.predict(data.test.images.data(), 11, 1), whole), 1e-5 * test::norm_of(whole));
  std::vector<float> unit(data.test.images.size());
  for (size_t i = 0; i < unit.size(); ++i) unit[i] = static_cast<float>(data.test.images[i]) / 255;
  EXPECT_LE(test::distance(s.predict(unit.data(), 11, 4), whole), 1e-5 * test::norm_of(whole));
  EXPECT_TRUE(s.predict(unit.data(), 0, 4).empty());
}

TEST_F(NnInference, FoldedPlanHasNoBatchnormAndNoLoss) {
  const NetworkDescription network = test::tiny_network(true);
  const std::string weights = weights_of(network);
  const auto count = [&](bool fold, const std::string& part) {
    InferenceSession s = session(network, weights, fold);
    int found = 0;
    for (const std::string& line : s.plan_lines(3)) found += line.find(part) != std::string::npos;
    return found;
  };
  EXPECT_EQ(count(true, "batchnorm."), 0);
  EXPECT_EQ(count(true, "step.fold"), 0);
  EXPECT_EQ(count(false, "batchnorm."), 0);  // the convolutions do them
  EXPECT_EQ(count(false, "step.fold"), 1);
  EXPECT_EQ(count(true, "softmax_xent."), 0);
  EXPECT_EQ(count(true, "step.finish"), 0);
}

TEST_F(NnInference, RefusesWhatDoesNotFit) {
  const NetworkDescription network = test::tiny_network(true);
  const std::string weights = weights_of(network);
  expect_error([&] { session(test::tiny_network(false), weights, true); }, {weights, "fc1.weight"});
  expect_error(
      [&] { InferenceSession(network, weights, kInput, kClasses, {0.5f}, {0.5f}, cpu_device(), {}); },
      {"3 channels", "1 means"});
  InferenceSession s = session(network, weights, true);
  const std::vector<uint8_t> none;
  expect_error([&] { s.predict(none.data(), 1, 0); }, {"batch"});
}

}  // namespace
}  // namespace kiln
