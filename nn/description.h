// The network description: an unfused list of layers with named inputs, read from JSON.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kiln {

// One layer. `type` is a key of layer_type_keys().
struct LayerDescription {
  std::string id;  // unique; parameters are named "<id>.weight", ...
  std::string type;
  std::vector<std::string> inputs;  // ids; default: the layer before ("input" for the first)
  int channels = 0;                 // conv2d: output channels; linear: output features
  int kernel_h = 0, kernel_w = 0;   // conv2d, depthwise_conv2d, max_pool2d, avg_pool2d
  int stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0;
  bool bias = false;                   // conv2d, depthwise_conv2d, linear
  float eps = 1e-5f, momentum = 0.1f;  // batchnorm
};

struct NetworkDescription {
  std::string name;
  std::vector<LayerDescription> layers;  // in execution order; the last one's output is the logits
};

// The layer types, and the keys each takes beside id, type and inputs.
const std::map<std::string, std::vector<std::string>>& layer_type_keys();

// Throws Error naming the layer, what it got and what it needs.
NetworkDescription parse_network(std::string_view json);
std::string network_to_json(const NetworkDescription&);

// The network without kinks, for comparisons of gradients: gelu for relu and relu6, average for max pooling.
// Ids stay, so that parameters keep their names; the name gets kSmoothSuffix.
NetworkDescription smooth_twin(const NetworkDescription& network);
inline constexpr const char* kSmoothSuffix = "_smooth";

// "small_cnn", "resnet18", ...: embedded JSON files (nn/models/*.json); with kSmoothSuffix their smooth
// twins. Throws Error suggesting the nearest.
const NetworkDescription& builtin_network(const std::string& name);
std::vector<std::string> builtin_network_names();  // without the twins

}  // namespace kiln
