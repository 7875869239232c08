// Descriptions: what is read, what is refused and how the refusal reads; shapes; parameters.
#include "nn/layer_rules.h"
#include "nn/parameters.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;

NetworkDescription with_layers(const std::string& layers) {
  return parse_network(R"({"name": "net", "layers": [)" + layers + "]}");
}

ShapedNetwork shaped(const std::string& layers, ValueShape input = {.h = 8, .w = 8, .c = 3},
                     int classes = 10) {
  return infer_shapes(with_layers(layers), input, classes);
}

constexpr const char* kConv = R"({"id": "a", "type": "conv2d", "channels": 4, "kernel": 3, "padding": 1},)";
constexpr const char* kHead =
    R"({"id": "flat", "type": "flatten"}, {"id": "fc", "type": "linear", "features": 10})";

TEST(NnDescription, BuiltinNetworksHaveTheirParameters) {
  EXPECT_EQ(builtin_network_names(),
            (std::vector<std::string>{"mobilenet_v1", "mobilenet_v2", "resnet18", "small_cnn"}));
  const std::map<std::string, long long> counts = {{"small_cnn", 307'946},
                                                   {"resnet18", 11'173'962},
                                                   {"mobilenet_v1", 3'217'226},
                                                   {"mobilenet_v2", 2'237'770}};
  for (const auto& [name, count] : counts) {
    for (const std::string& twin : {name, name + kSmoothSuffix}) {
      const ShapedNetwork network = infer_shapes(builtin_network(twin), {.h = 32, .w = 32, .c = 3}, 10);
      EXPECT_EQ(ParameterLayout(network).parameter_count(), count) << twin;
    }
  }
  expect_error([] { builtin_network("resnet8"); }, {"resnet8", "did you mean 'resnet18'"});
}

TEST(NnDescription, BuiltinNetworksTakeOtherImagesAndClasses) {
  for (const std::string& name : builtin_network_names()) {
    const ShapedNetwork network = infer_shapes(builtin_network(name), {.h = 48, .w = 40, .c = 1}, 37);
    EXPECT_EQ(network.shapes.back().c, 37) << name;
  }
}

TEST(NnDescription, MobilenetsHaveTheirShapes) {
  const auto shape_of = [](const std::string& network, const std::string& id) {
    const ShapedNetwork shaped = infer_shapes(builtin_network(network), {.h = 32, .w = 32, .c = 3}, 10);
    for (int i = 0; i < shaped.layers(); ++i) {
      if (shaped.layer(i).id == id) return shaped.out(i).str();
    }
    return std::string("no layer ") + id;
  };
  EXPECT_EQ(shape_of("mobilenet_v1", "blocks.0.pw"), "32x32x64");
  EXPECT_EQ(shape_of("mobilenet_v1", "blocks.5.dw"), "4x4x256");
  EXPECT_EQ(shape_of("mobilenet_v1", "blocks.12.bn2"), "2x2x1024");
  EXPECT_EQ(shape_of("mobilenet_v2", "blocks.0.expand"), "32x32x32");
  EXPECT_EQ(shape_of("mobilenet_v2", "blocks.2.add"), "32x32x24");
  EXPECT_EQ(shape_of("mobilenet_v2", "blocks.13.dw"), "4x4x576");
  EXPECT_EQ(shape_of("mobilenet_v2", "blocks.16.bn3"), "4x4x320");
  int adds = 0;
  for (const LayerDescription& layer : builtin_network("mobilenet_v2").layers) adds += layer.type == "add";
  EXPECT_EQ(adds, 10);
}

TEST(NnDescription, SmoothTwinHasNoKinks) {
  for (const std::string& name : builtin_network_names()) {
    const NetworkDescription& network = builtin_network(name);
    const NetworkDescription& twin = builtin_network(name + "_smooth");
    EXPECT_EQ(twin.name, name + "_smooth");
    ASSERT_EQ(twin.layers.size(), network.layers.size());
    for (size_t i = 0; i < twin.layers.size(); ++i) {
      EXPECT_EQ(twin.layers[i].id, network.layers[i].id);
      for (const char* type : {"relu", "relu6", "max_pool2d", "global_max_pool"}) {
        EXPECT_NE(twin.layers[i].type, type);
      }
    }
  }
}

TEST(NnDescription, JsonRoundTrip) {
  for (const std::string& name : builtin_network_names()) {
    const std::string text = network_to_json(builtin_network(name));
    EXPECT_EQ(network_to_json(parse_network(text)), text);
  }
  const std::string text = network_to_json(test::tiny_network(true));
  EXPECT_EQ(network_to_json(parse_network(text)), text);
}

TEST(NnDescription, RefusesWhatItDoesNotUnderstand) {
  expect_error([] { parse_network("{"); }, {"not JSON"});
  expect_error([] { parse_network("[]"); }, {"'name' and 'layers'"});
  expect_error([] { parse_network(R"({"name": "n"})"); }, {"lacks 'layers'"});
  expect_error([] { parse_network(R"({"name": "n", "layers": []})"); }, {"at least one layer"});
  expect_error([] { parse_network(R"({"name": "n", "layer": []})"); },
               {"unknown key 'layer'", "did you mean 'layers'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2"})"); },
               {"layer 'a'", "unknown layer type 'conv2'", "did you mean 'conv2d'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2d", "chanels": 4, "kernel": 3})"); },
               {"layer 'a' (conv2d)", "'chanels'", "did you mean 'channels'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2d", "channels": 4})"); },
               {"layer 'a'", "lacks 'kernel'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2d", "channels": 0, "kernel": 3})"); },
               {"layer 'a'", "'channels' is 0", "from 1"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2d", "channels": 2.5, "kernel": 3})"); },
               {"2.5"});
  expect_error([] { with_layers(R"({"id": "a", "type": "conv2d", "channels": 4, "kernel": [3, 3, 3]})"); },
               {"'kernel'", "[height, width]"});
  expect_error([] { with_layers(R"({"id": "a", "type": "relu", "bias": true})"); }, {"unknown key 'bias'"});
  expect_error([] { with_layers(R"({"type": "relu"})"); }, {"layer 0", "lacks 'id'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "depthwise_conv2d"})"); },
               {"layer 'a' (depthwise_conv2d)", "lacks 'kernel'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "depthwise_conv2d", "kernel": 3, "channels": 4})"); },
               {"layer 'a' (depthwise_conv2d)", "unknown key 'channels'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "gelu6"})"); },
               {"unknown layer type 'gelu6'", "did you mean"});
  expect_error([] { with_layers(R"({"id": "a", "type": "avg_pool2d", "kernel": 2, "bias": true})"); },
               {"layer 'a' (avg_pool2d)", "unknown key 'bias'"});
  expect_error([] { with_layers(R"({"id": "a", "type": "global_max_pool", "kernel": 2})"); },
               {"unknown key 'kernel'"});
  expect_error([] { parse_network(R"({"name": "a/b", "layers": []})"); }, {"'a/b'", "no '/'"});
}

TEST(NnDescription, RefusesBrokenConnections) {
  expect_error([] { with_layers(R"({"id": "a", "type": "relu", "inputs": "b"})"); },
               {"layer 'a' (relu)", "unknown input 'b'", "layers before it"});
  expect_error([] { with_layers(R"({"id": "a", "type": "add"})"); },
               {"layer 'a' (add)", "got 1 input", "needs 2"});
  expect_error([] { with_layers(R"({"id": "a", "type": "relu"}, {"id": "a", "type": "relu"})"); },
               {"ids must differ"});
  expect_error(
      [] { with_layers(R"({"id": "a", "type": "relu"}, {"id": "b", "type": "relu", "inputs": "input"})"); },
      {"layer 'a'", "nobody uses"});
}

TEST(NnDescription, ShapesThatDoNotFitNameTheLayer) {
  expect_error(
      [] { shaped(R"({"id": "a", "type": "conv2d", "channels": 4, "kernel": 9},)" + std::string(kHead)); },
      {"layer 'a' (conv2d)", "got 8x8x3", "9x9"});
  expect_error([] { shaped(R"({"id": "fc", "type": "linear", "features": 10})"); },
               {"layer 'fc' (linear)", "got 8x8x3", "flatten"});
  expect_error(
      [] { shaped(kConv + std::string(R"({"id": "s", "type": "add", "inputs": ["a", "input"]},)") + kHead); },
      {"layer 's' (add)", "8x8x4 and 8x8x3", "equal"});
  expect_error([] { shaped(kConv + std::string(kHead), {.h = 8, .w = 8, .c = 3}, 7); },
               {"layer 'fc'", "1x1x10", "1x1x7"});
  expect_error(
      [] {
        shaped(R"({"id": "flat", "type": "flatten"}, {"id": "bn", "type": "batchnorm"},
              {"id": "fc", "type": "linear", "features": 10})");
      },
      {"layer 'bn' (batchnorm)", "before the flatten"});
  for (const char* layer : {R"({"id": "a", "type": "conv2d", "channels": 4, "kernel": 1})",
                            R"({"id": "a", "type": "global_max_pool"})",
                            R"({"id": "a", "type": "depthwise_conv2d", "kernel": 1})"}) {
    expect_error(
        [&] {
          shaped(R"({"id": "flat", "type": "flatten"},)" + std::string(layer) +
                 R"(, {"id": "fc", "type": "linear", "features": 10})");
        },
        {"layer 'a'", "before the flatten"});
  }
  expect_error(
      [] { shaped(R"({"id": "a", "type": "depthwise_conv2d", "kernel": 9},)" + std::string(kHead)); },
      {"layer 'a' (depthwise_conv2d)", "got 8x8x3", "9x9"});
  expect_error(
      [] { shaped(R"({"id": "a", "type": "avg_pool2d", "kernel": 2, "padding": 2},)" + std::string(kHead)); },
      {"layer 'a' (avg_pool2d)", "padding"});
}

TEST(NnParameters, LinearBehindAFlattenIsPermutedToPyTorchsOrder) {
  const ShapedNetwork network = shaped(kHead, {.h = 2, .w = 3, .c = 4});
  const ParameterLayout layout(network);
  const Parameter& weight = layout.parameter(1, true);
  std::vector<float> torch(weight.count()), slab(weight.count()), back(weight.count());
  for (size_t i = 0; i < torch.size(); ++i) torch[i] = static_cast<float>(i);
  to_slab_order(weight, torch.data(), slab.data());
  const int k = 5, h = 1, w = 2, c = 3;
  EXPECT_EQ(slab[k * 24 + (h * 3 + w) * 4 + c], torch[k * 24 + (c * 2 + h) * 3 + w]);
  to_torch_order(weight, slab.data(), back.data());
  EXPECT_EQ(back, torch);
}

TEST(NnParameters, ConvFilterIsOihwOutsideAndKrscInside) {
  const ShapedNetwork network =
      shaped(R"({"id": "a", "type": "conv2d", "channels": 4, "kernel": [2, 3]},)" + std::string(kHead));
  const ParameterLayout layout(network);
  const Parameter& weight = layout.parameter(0, true);
  EXPECT_EQ(weight.shape, (std::vector<int64_t>{4, 3, 2, 3}));
  std::vector<float> torch(weight.count()), slab(weight.count());
  for (size_t i = 0; i < torch.size(); ++i) torch[i] = static_cast<float>(i);
  to_slab_order(weight, torch.data(), slab.data());
  const int k = 3, c = 2, r = 1, s = 2;
  EXPECT_EQ(slab[((k * 2 + r) * 3 + s) * 3 + c], torch[((k * 3 + c) * 2 + r) * 3 + s]);
}

TEST(NnParameters, DepthwiseFilterIsOihwOutsideAndRscInside) {
  const ShapedNetwork network = shaped(
      R"({"id": "a", "type": "depthwise_conv2d", "kernel": [2, 3], "bias": true},)" + std::string(kHead));
  const ParameterLayout layout(network);
  const Parameter& weight = layout.parameter(0, true);
  EXPECT_EQ(weight.shape, (std::vector<int64_t>{3, 1, 2, 3}));
  EXPECT_EQ(weight.bound, 1 / std::sqrt(6.0));
  EXPECT_TRUE(weight.decayed());
  EXPECT_EQ(layout.parameter(0, false).shape, (std::vector<int64_t>{3}));
  EXPECT_EQ(layout.parameter(0, false).bound, weight.bound);
  std::vector<float> torch(weight.count()), slab(weight.count()), back(weight.count());
  for (size_t i = 0; i < torch.size(); ++i) torch[i] = static_cast<float>(i);
  to_slab_order(weight, torch.data(), slab.data());
  const int c = 2, r = 1, s = 0;
  EXPECT_EQ(slab[(r * 3 + s) * 3 + c], torch[(c * 2 + r) * 3 + s]);
  to_torch_order(weight, slab.data(), back.data());
  EXPECT_EQ(back, torch);
}

TEST(NnParameters, SlabIsAlignedAndDecayedFirst) {
  const ShapedNetwork network = infer_shapes(builtin_network("mobilenet_v2"), {.h = 32, .w = 32, .c = 3}, 10);
  const ParameterLayout layout(network);
  const std::vector<float> slab = layout.initial_parameters(7);
  std::vector<char> covered(slab.size(), 0);
  for (const Parameter& p : layout.parameters()) {
    EXPECT_EQ(p.offset % 128, 0u) << p.name;
    EXPECT_EQ(p.offset < layout.decayed_elements(), p.decayed()) << p.name;
    for (long long i = 0; i < p.count(); ++i) {
      ASSERT_EQ(covered[p.offset + i], 0) << p.name;
      covered[p.offset + i] = 1;
      if (p.bound > 0) {
        ASSERT_LE(std::abs(slab[p.offset + i]), p.bound) << p.name;
      }
    }
  }
  for (size_t i = 0; i < slab.size(); ++i) {
    if (!covered[i]) {
      ASSERT_EQ(slab[i], 0.0f) << "padding at " << i;
    }
  }
  EXPECT_EQ(slab, layout.initial_parameters(7));
  EXPECT_NE(slab, layout.initial_parameters(8));
}

// Names of the batchnorms whose gamma is 0 at the start; nothing else differs.
std::vector<std::string> zeroed(const ShapedNetwork& network) {
  const ParameterLayout layout(network);
  const std::vector<float> usual = layout.initial_parameters(7), slab = layout.initial_parameters(7, true);
  std::vector<std::string> names;
  size_t differ = 0, expected = 0;
  for (size_t i = 0; i < slab.size(); ++i) differ += slab[i] != usual[i];
  for (const Parameter& p : layout.parameters()) {
    if (slab[p.offset] == usual[p.offset]) continue;
    for (long long i = 0; i < p.count(); ++i) {
      EXPECT_EQ(slab[p.offset + i], 0.0f) << p.name;
      EXPECT_EQ(usual[p.offset + i], 1.0f) << p.name;
    }
    expected += static_cast<size_t>(p.count());
    names.push_back(network.layer(p.layer).id);
  }
  EXPECT_EQ(differ, expected);
  return names;
}

TEST(NnParameters, ZeroInitResidualTakesTheBranchesLastBatchnorm) {
  const ValueShape image = {.h = 32, .w = 32, .c = 3};
  std::vector<std::string> wanted;
  for (int layer = 1; layer <= 4; ++layer) {  // and no shortcut's
    for (int block : {0, 1})
      wanted.push_back("layer" + std::to_string(layer) + "." + std::to_string(block) + ".bn2");
  }
  EXPECT_EQ(zeroed(infer_shapes(builtin_network("resnet18"), image, 10)), wanted);
  wanted.clear();
  for (int block : {2, 4, 5, 7, 8, 9, 11, 12, 14, 15})  // the shortcut is the block before, a batchnorm too
    wanted.push_back("blocks." + std::to_string(block) + ".bn3");
  EXPECT_EQ(zeroed(infer_shapes(builtin_network("mobilenet_v2"), image, 10)), wanted);
  // Both ways are equally long; the branch's batchnorm has another reader; the branch ends in a convolution.
  for (const char* layers :
       {R"({"id": "a", "type": "batchnorm"}, {"id": "b", "type": "batchnorm", "inputs": ["input"]},
           {"id": "sum", "type": "add", "inputs": ["a", "b"]},)",
        R"({"id": "a", "type": "conv2d", "channels": 3, "kernel": 1}, {"id": "b", "type": "batchnorm"},
           {"id": "sum", "type": "add", "inputs": ["b", "input"]},
           {"id": "again", "type": "add", "inputs": ["sum", "b"]},)",
        R"({"id": "b", "type": "batchnorm"}, {"id": "a", "type": "conv2d", "channels": 3, "kernel": 1},
           {"id": "sum", "type": "add", "inputs": ["a", "input"]},)"}) {
    const ShapedNetwork network = shaped(layers + std::string(kHead));
    expect_error([&] { ParameterLayout(network).initial_parameters(1, true); }, {"zero_init_residual"});
  }
}

}  // namespace
}  // namespace kiln
