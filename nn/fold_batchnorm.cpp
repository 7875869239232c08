#include "nn/fold_batchnorm.h"

#include <cmath>
#include <map>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Tensors = std::map<std::string, NamedTensor>;  // by name

Tensors by_name(const std::vector<NamedTensor>& list) {
  Tensors tensors;
  for (const NamedTensor& t : list) tensors[t.name] = t;
  return tensors;
}

const std::vector<float>& values(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) fail_failure("fold_batchnorm: no tensor '" + name + "'");
  return found->second.values;
}

bool takes_a_fold(const std::string& type) {
  return type == "conv2d" || type == "depthwise_conv2d" || type == "linear";
}

// All these weights have one row an output in PyTorch's layouts.
void fold(const LayerDescription& batchnorm, const Tensors& statistics, LayerDescription* layer,
          Tensors* parameters) {
  const std::vector<float>& gamma = values(*parameters, batchnorm.id + ".weight");
  const std::vector<float>& beta = values(*parameters, batchnorm.id + ".bias");
  const std::vector<float>& mean = values(statistics, batchnorm.id + ".running_mean");
  const std::vector<float>& var = values(statistics, batchnorm.id + ".running_var");
  NamedTensor& weight = parameters->at(layer->id + ".weight");
  NamedTensor& bias = (*parameters)[layer->id + ".bias"];
  const size_t outputs = gamma.size(), row = weight.values.size() / outputs;
  if (!layer->bias) {
    bias = {layer->id + ".bias", {static_cast<int64_t>(outputs)}, std::vector<float>(outputs, 0.0f)};
  }
  for (size_t k = 0; k < outputs; ++k) {
    const double scale = gamma[k] / std::sqrt(static_cast<double>(var[k]) + batchnorm.eps);
    for (size_t i = k * row; i < (k + 1) * row; ++i) {
      weight.values[i] = static_cast<float>(weight.values[i] * scale);
    }
    bias.values[k] = static_cast<float>(beta[k] + (static_cast<double>(bias.values[k]) - mean[k]) * scale);
  }
  layer->bias = true;
}

// The tensors that the folded network wants, in its order.
void take(const NetworkDescription& network, const Tensors& parameters, const Tensors& statistics,
          FoldedNetwork* folded) {
  for (const LayerDescription& layer : network.layers) {
    const bool batchnorm = layer.type == "batchnorm";
    if (!batchnorm && !takes_a_fold(layer.type)) continue;
    folded->parameters.push_back(parameters.at(layer.id + ".weight"));
    if (batchnorm || layer.bias) folded->parameters.push_back(parameters.at(layer.id + ".bias"));
    if (!batchnorm) continue;
    for (const char* name : {".running_mean", ".running_var"}) {
      folded->statistics.push_back(statistics.at(layer.id + name));
    }
  }
}

}  // namespace

FoldedNetwork fold_batchnorm(const ShapedNetwork& network, const std::vector<NamedTensor>& parameters,
                             const std::vector<NamedTensor>& statistics) {
  Tensors all = by_name(parameters);
  const Tensors running = by_name(statistics);
  FoldedNetwork folded = {
      .description = {.name = network.description.name, .layers = {}}, .parameters = {}, .statistics = {}};
  std::vector<LayerDescription>& layers = folded.description.layers;
  // A value of `network`: the layer in `layers` that makes it, -1 for the input.
  std::vector<int> maker = {-1};
  for (int i = 0; i < network.layers(); ++i) {
    LayerDescription layer = network.layer(i);
    const int input = network.inputs[i][0], source = maker[input];
    if (layer.type == "batchnorm" && network.consumers[input].size() == 1 && source >= 0 &&
        takes_a_fold(layers[source].type)) {
      fold(layer, running, &layers[source], &all);
      maker.push_back(source);
      continue;
    }
    layer.inputs.clear();
    for (int value : network.inputs[i]) {
      layer.inputs.push_back(maker[value] < 0 ? kInputId : layers[maker[value]].id);
    }
    layers.push_back(layer);
    maker.push_back(static_cast<int>(layers.size()) - 1);
  }
  take(folded.description, all, running, &folded);
  return folded;
}

}  // namespace kiln
