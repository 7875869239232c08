// Reading and writing network descriptions, strictly: what is not understood is an error that names the
// layer.
#include "nn/description.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/common/error.h"
#include "nn/embedded_models.h"
#include "nn/layer_rules.h"

namespace kiln {
namespace {

using Json = nlohmann::ordered_json;

bool is_one_of(const std::string& type, std::initializer_list<const char*> types) {
  return std::find(types.begin(), types.end(), type) != types.end();
}
bool is_pool(const std::string& type) { return is_one_of(type, {"max_pool2d", "avg_pool2d"}); }
bool has_window(const std::string& type) {
  return is_pool(type) || is_one_of(type, {"conv2d", "depthwise_conv2d"});
}
bool may_have_bias(const std::string& type) {
  return is_one_of(type, {"conv2d", "depthwise_conv2d", "linear"});
}

std::vector<std::string> layer_types() {
  std::vector<std::string> names;
  for (const auto& [name, keys] : layer_type_keys()) names.push_back(name);
  return names;
}

// Reads one layer's object; `where` names it in errors.
class LayerReader {
 public:
  LayerReader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& rule) const { fail_usage(where_ + ": " + rule); }

  void require_known(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : json_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end())
        fail(unknown_name_message("key", key, known));
    }
  }

  std::string text(const char* key) const {
    if (!json_.contains(key)) fail(std::string("lacks '") + key + "', which must be a string");
    if (!json_[key].is_string() || json_[key].get<std::string>().empty()) {
      fail(std::string("'") + key + "' is " + json_[key].dump() + ", but must be a string that is not empty");
    }
    return json_[key].get<std::string>();
  }

  // `least` <= value <= 65536.
  int integer(const char* key, const Json& value, int least) const {
    if (!value.is_number_integer() || value.get<double>() < least || value.get<double>() > 65536) {
      fail(std::string("'") + key + "' is " + value.dump() + ", but must be a whole number from " +
           std::to_string(least) + " to 65536");
    }
    return value.get<int>();
  }

  // 3 or [3, 5] (height, width).
  void pair(const char* key, int least, int* h, int* w) const {
    const Json& value = json_[key];
    if (!value.is_array()) {
      *h = *w = integer(key, value, least);
    } else if (value.size() == 2) {
      *h = integer(key, value[0], least);
      *w = integer(key, value[1], least);
    } else {
      fail(std::string("'") + key + "' is " + value.dump() + ", but must be a number or [height, width]");
    }
  }

  bool has(const char* key) const { return json_.contains(key); }
  const Json& at(const char* key) const {
    if (!has(key)) fail(std::string("lacks '") + key + "'");
    return json_[key];
  }

  bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_boolean())
      fail(std::string("'") + key + "' is " + json_[key].dump() + ", but must be true or false");
    return json_[key].get<bool>();
  }

  float real(const char* key, float fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_number())
      fail(std::string("'") + key + "' is " + json_[key].dump() + ", but must be a number");
    return json_[key].get<float>();
  }

 private:
  const Json& json_;
  std::string where_;
};

std::vector<std::string> read_inputs(const LayerReader& in, const std::string& previous) {
  if (!in.has("inputs")) return {previous};
  const Json& value = in.at("inputs");
  std::vector<std::string> ids;
  if (value.is_string()) ids.push_back(value.get<std::string>());
  if (value.is_array()) {
    for (const Json& id : value) {
      if (!id.is_string()) in.fail("'inputs' holds " + id.dump() + ", but must hold layer ids");
      ids.push_back(id.get<std::string>());
    }
  }
  if (ids.empty()) in.fail("'inputs' is " + value.dump() + ", but must be an id or a list of ids");
  return ids;
}

LayerDescription read_layer(const Json& json, size_t index, const std::string& network,
                            const std::string& previous) {
  const std::string place = "network '" + network + "': layer " + std::to_string(index);
  if (!json.is_object()) fail_usage(place + " is " + json.dump() + ", but must be an object");
  LayerDescription layer;
  layer.id = LayerReader(json, place).text("id");
  const LayerReader untyped(json, "network '" + network + "': layer '" + layer.id + "'");
  layer.type = untyped.text("type");
  const auto keys = layer_type_keys().find(layer.type);
  if (keys == layer_type_keys().end())
    untyped.fail(unknown_name_message("layer type", layer.type, layer_types()));

  const LayerReader in(json, layer_name(network, layer));
  std::vector<std::string> known = {"id", "type", "inputs"};
  known.insert(known.end(), keys->second.begin(), keys->second.end());
  in.require_known(known);
  layer.inputs = read_inputs(in, previous);
  if (has_window(layer.type)) {
    in.at("kernel");
    in.pair("kernel", 1, &layer.kernel_h, &layer.kernel_w);
    if (is_pool(layer.type)) {  // as PyTorch: the stride is the window's
      layer.stride_h = layer.kernel_h;
      layer.stride_w = layer.kernel_w;
    }
    if (in.has("stride")) in.pair("stride", 1, &layer.stride_h, &layer.stride_w);
    if (in.has("padding")) in.pair("padding", 0, &layer.pad_h, &layer.pad_w);
  }
  if (layer.type == "conv2d") layer.channels = in.integer("channels", in.at("channels"), 1);
  if (layer.type == "linear" && in.at("features") != "classes") {
    layer.channels = in.integer("features", in.at("features"), 1);
  }
  if (may_have_bias(layer.type)) layer.bias = in.boolean("bias", layer.type == "linear");
  layer.eps = in.real("eps", layer.eps);
  layer.momentum = in.real("momentum", layer.momentum);
  return layer;
}

Json pair_json(int h, int w) { return h == w ? Json(h) : Json({h, w}); }

Json layer_json(const LayerDescription& layer) {
  Json json = {{"id", layer.id}, {"type", layer.type}, {"inputs", layer.inputs}};
  if (layer.type == "conv2d") json["channels"] = layer.channels;
  if (has_window(layer.type)) {
    json["kernel"] = pair_json(layer.kernel_h, layer.kernel_w);
    json["stride"] = pair_json(layer.stride_h, layer.stride_w);
    json["padding"] = pair_json(layer.pad_h, layer.pad_w);
  }
  if (layer.type == "linear") json["features"] = layer.channels ? Json(layer.channels) : Json("classes");
  if (may_have_bias(layer.type)) json["bias"] = layer.bias;
  if (layer.type == "batchnorm") {
    json["eps"] = layer.eps;
    json["momentum"] = layer.momentum;
  }
  return json;
}

}  // namespace

const std::map<std::string, std::vector<std::string>>& layer_type_keys() {
  static const std::map<std::string, std::vector<std::string>> keys = {
      {"conv2d", {"channels", "kernel", "stride", "padding", "bias"}},
      {"depthwise_conv2d", {"kernel", "stride", "padding", "bias"}},
      {"batchnorm", {"eps", "momentum"}},
      {"relu", {}},
      {"relu6", {}},
      {"gelu", {}},
      {"silu", {}},
      {"add", {}},
      {"max_pool2d", {"kernel", "stride", "padding"}},
      {"avg_pool2d", {"kernel", "stride", "padding"}},
      {"global_max_pool", {}},
      {"global_avg_pool", {}},
      {"flatten", {}},
      {"linear", {"features", "bias"}}};
  return keys;
}

NetworkDescription parse_network(std::string_view text) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail_usage(std::string("network description: not JSON: ") + error.what());
  }
  if (!json.is_object()) fail_usage("network description: must be an object with 'name' and 'layers'");
  const LayerReader in(json, "network description");
  in.require_known({"$schema", "name", "layers"});
  NetworkDescription network;
  network.name = in.text("name");
  if (network.name.find('/') != std::string::npos) {
    in.fail("'name' is '" + network.name + "', but must have no '/': run folders are called after it");
  }
  const Json& layers = in.at("layers");
  if (!layers.is_array() || layers.empty()) in.fail("'layers' must be a list of at least one layer");
  std::string previous = kInputId;
  for (const Json& layer : layers) {
    network.layers.push_back(read_layer(layer, network.layers.size(), network.name, previous));
    previous = network.layers.back().id;
  }
  resolve_inputs(network);
  return network;
}

std::string network_to_json(const NetworkDescription& network) {
  std::string text = "{\n  \"name\": " + Json(network.name).dump() + ",\n  \"layers\": [\n";
  for (size_t i = 0; i < network.layers.size(); ++i) {
    text += "    " + layer_json(network.layers[i]).dump() + (i + 1 < network.layers.size() ? ",\n" : "\n");
  }
  return text + "  ]\n}\n";
}

std::vector<std::string> builtin_network_names() {
  std::vector<std::string> names;
  for (const EmbeddedModel& model : embedded_models()) names.emplace_back(model.name);
  return names;
}

NetworkDescription smooth_twin(const NetworkDescription& network) {
  NetworkDescription twin = network;
  twin.name += kSmoothSuffix;
  for (LayerDescription& layer : twin.layers) {
    if (is_one_of(layer.type, {"relu", "relu6"})) layer.type = "gelu";
    if (layer.type == "max_pool2d") layer.type = "avg_pool2d";
    if (layer.type == "global_max_pool") layer.type = "global_avg_pool";
  }
  return twin;
}

const NetworkDescription& builtin_network(const std::string& name) {
  static const std::map<std::string, NetworkDescription> networks = [] {
    std::map<std::string, NetworkDescription> parsed;
    for (const EmbeddedModel& model : embedded_models()) {
      const NetworkDescription network = parse_network(model.json);
      parsed[model.name] = network;
      parsed[std::string(model.name) + kSmoothSuffix] = smooth_twin(network);
    }
    return parsed;
  }();
  const auto found = networks.find(name);
  if (found == networks.end()) fail_usage(unknown_name_message("network", name, builtin_network_names()));
  return found->second;
}

}  // namespace kiln
