// The built-in networks' training step on the CPU, fused against unfused; networks from files; the schema.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using Json = nlohmann::json;

std::string document(const std::string& name) {
  return test::file_bytes(std::string(KILN_DOCS) + "/" + name);
}

// `bound`: of the gradients; kinks may fall to the other side where a sum is rounded otherwise.
void fused_against_unfused(const std::string& name, int batch, double bound,
                           bool zero_init_residual = false) {
  SCOPED_TRACE(name);
  const ValueShape input = {.h = 32, .w = 32, .c = 3};
  const std::vector<float> images = test::random_images(batch * input.elements(), 1);
  const std::vector<int32_t> labels = test::some_labels(batch, 10);
  std::vector<StepProbe::Tensors> gradients;
  std::vector<double> losses;
  for (const std::vector<std::string>& off : {std::vector<std::string>{}, {"all"}}) {
    StepProbe probe(builtin_network(name), input, 10, batch, cpu_device(),
                    {.fusions_off = off, .seed = 2, .zero_init_residual = zero_init_residual});
    probe.forward(images, labels);
    probe.backward();
    losses.push_back(probe.loss());
    gradients.push_back(probe.gradients());
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-4);
  test::expect_close_gradients(gradients[0], gradients[1], bound);
}

TEST(NnNetworks, SmallCnnFusedMatchesUnfused) { fused_against_unfused("small_cnn", 4, 1e-2); }
TEST(NnNetworks, Resnet18FusedMatchesUnfused) { fused_against_unfused("resnet18", 2, 1e-2); }
TEST(NnNetworks, MobilenetV1FusedMatchesUnfused) { fused_against_unfused("mobilenet_v1", 4, 1e-2); }
TEST(NnNetworks, MobilenetV2FusedMatchesUnfused) { fused_against_unfused("mobilenet_v2", 4, 1e-2); }
TEST(NnNetworks, ZeroInitResidualFusedMatchesUnfused) {
  fused_against_unfused("resnet18", 2, 1e-2, true);
  fused_against_unfused("mobilenet_v2", 4, 1e-2, true);
}
TEST(NnNetworks, SmoothTwinsFusedMatchUnfused) {
  for (const char* name : {"small_cnn_smooth", "mobilenet_v1_smooth", "mobilenet_v2_smooth"}) {
    fused_against_unfused(name, 4, 1e-4);
  }
  fused_against_unfused("resnet18_smooth", 2, 1e-4);
}

// A block starts as its shortcut, and the gamma that holds it there has a gradient to leave with.
TEST(NnNetworks, ZeroInitResidualStartsAsTheShortcuts) {
  const ValueShape input = {.h = 32, .w = 32, .c = 3};
  StepProbe probe(builtin_network("resnet18"), input, 10, 2, cpu_device(),
                  {.fusions_off = {"all"}, .seed = 2, .zero_init_residual = true});
  probe.forward(test::random_images(2 * input.elements(), 1), test::some_labels(2, 10));
  probe.backward();
  EXPECT_EQ(probe.activation("layer1.1.relu2"), probe.activation("relu"));
  EXPECT_EQ(probe.activation("layer2.0.add"), probe.activation("layer2.0.shortcut.1"));
  const std::vector<float> gradient = probe.gradients().at("layer4.1.bn2.weight");
  EXPECT_TRUE(std::ranges::any_of(gradient, [](float g) { return g != 0; }));
}

TEST(NnNetworks, ExamplesTrainFromTheirFiles) {
  for (const char* file : {"examples/residual_gelu.json", "examples/lenet.json"}) {
    SCOPED_TRACE(file);
    const NetworkDescription network = parse_network(document(file));
    TrainOptions o;
    o.batch = 32;
    o.epochs = 12;
    o.optimizer = Optimizer::kAdamw;
    o.lr = 3e-3f;
    o.augment_pad = 0;
    o.augment_flip = Flip::kNone;
    const DataPair data = test::tiny_data(96, 32, 16);
    Trainer trainer(network, data, cpu_device(), o);
    std::vector<float> losses;
    trainer.train([&](const DrainRecord& r) {
      losses.insert(losses.end(), r.step_losses.begin(), r.step_losses.end());
      return true;
    });
    ASSERT_EQ(losses.size(), 36u);
    EXPECT_LT(losses.back(), 0.7 * losses.front());
    // What a run folder keeps is the network.
    const std::string kept = Json::parse(network_to_json(network)).dump();
    EXPECT_EQ(network_to_json(parse_network(kept)), network_to_json(network));
  }
}

TEST(NnNetworks, SchemaAndParserKnowTheSameKeys) {
  const Json schema = Json::parse(document("network.schema.json"));
  std::map<std::string, std::vector<std::string>> types;
  for (const Json& layer : schema.at("$defs").at("layer").at("oneOf")) {
    const Json& properties = layer.at("properties");
    const std::string type = properties.at("type").at("const");
    EXPECT_FALSE(layer.at("additionalProperties").get<bool>()) << type;
    std::vector<std::string>& keys = types[type];
    for (const auto& [key, value] : properties.items()) {
      if (key != "id" && key != "type" && key != "inputs") keys.push_back(key);
    }
    for (const Json& key : layer.at("required")) EXPECT_TRUE(properties.contains(key)) << type << " " << key;
    std::sort(keys.begin(), keys.end());
  }
  std::map<std::string, std::vector<std::string>> wanted = layer_type_keys();
  for (auto& [type, keys] : wanted) std::sort(keys.begin(), keys.end());
  EXPECT_EQ(types, wanted);
}

TEST(NnNetworks, DocumentNamesEveryLayerTypeAndKey) {
  const std::string text = document("networks.md");
  for (const auto& [type, keys] : layer_type_keys()) {
    const size_t row = text.find("| `" + type + "` |");
    ASSERT_NE(row, std::string::npos) << type;
    const std::string line = text.substr(row, text.find('\n', row) - row);
    for (const std::string& key : keys) EXPECT_NE(line.find("`" + key + "`"), std::string::npos) << line;
  }
}

}  // namespace
}  // namespace kiln
