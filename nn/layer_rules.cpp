#include "nn/layer_rules.h"

#include <algorithm>
#include <map>

#include "kernels/common/error.h"

namespace kiln {
namespace {

int inputs_wanted(const LayerDescription& layer) { return layer.type == "add" ? 2 : 1; }

bool is_activation(const std::string& type) {
  return type == "relu" || type == "relu6" || type == "gelu" || type == "silu";
}

// A window of r x s must fit the padded image.
std::string window_needs(const LayerDescription& layer, const ValueShape& in) {
  if (in.h + 2 * layer.pad_h >= layer.kernel_h && in.w + 2 * layer.pad_w >= layer.kernel_w) return "";
  return "got " + in.str() + ", but a " + std::to_string(layer.kernel_h) + "x" +
         std::to_string(layer.kernel_w) + " window with padding " + std::to_string(layer.pad_h) + "x" +
         std::to_string(layer.pad_w) + " needs a larger image";
}

// Of a problem that has a window, with `channels` out of it.
template <class Problem>
ValueShape window_shape(const Problem& p, int channels) {
  return {.h = p.p(), .w = p.q(), .c = channels};
}

ValueShape windowed(const LayerDescription& layer, const ValueShape& in) {
  if (const std::string needs = window_needs(layer, in); !needs.empty()) fail_usage(needs);
  if (layer.type == "conv2d") {
    return window_shape(conv2d_problem(layer, in, 1, DType::kF32), layer.channels);
  }
  if (layer.type == "depthwise_conv2d") {
    return window_shape(depthwise_conv2d_problem(layer, in, 1, DType::kF32), in.c);
  }
  if (layer.type == "max_pool2d") return window_shape(max_pool2d_problem(layer, in, 1, DType::kF32), in.c);
  return window_shape(avg_pool2d_problem(layer, in, 1, DType::kF32), in.c);
}

// The output's shape; throws Error with the rule alone (the caller names the layer).
ValueShape output_shape(const LayerDescription& layer, const ValueShape& in, const ValueShape* second) {
  const std::string& type = layer.type;
  if (is_activation(type)) return in;
  if (type == "add") {
    if (!(in == *second))
      fail_usage("got " + in.str() + " and " + second->str() + ", but needs two equal shapes");
    return in;
  }
  if (type == "flatten") {
    if (in.is_flat()) return in;
    if (in.elements() > 0x7fffffff) fail_usage("got " + in.str() + ", which is too large to flatten");
    return {.c = static_cast<int>(in.elements()), .from_h = in.h, .from_w = in.w};
  }
  if (type == "linear") {
    if (!in.is_flat())
      fail_usage("got " + in.str() + ", but needs 1x1 images: put a flatten or a global pool before it");
    linear_problem(layer, in, 1, DType::kF32);
    return {.c = layer.channels};
  }
  // Behind a flatten kiln's order of features is not PyTorch's; only a linear layer's weight is permuted.
  if (in.from_h * in.from_w > 1) {
    fail_usage(
        "got a flattened image, but needs the image itself or single features: put it before the flatten");
  }
  if (type == "batchnorm") {
    batchnorm_problem(layer, in, 1, DType::kF32);
    return in;
  }
  if (type == "global_avg_pool" || type == "global_max_pool") return {.c = in.c};
  return windowed(layer, in);
}

}  // namespace

std::string ValueShape::str() const {
  return std::to_string(h) + "x" + std::to_string(w) + "x" + std::to_string(c);
}

std::string layer_name(const std::string& network, const LayerDescription& layer) {
  return "network '" + network + "': layer '" + layer.id + "' (" + layer.type + ")";
}

std::vector<std::vector<int>> resolve_inputs(const NetworkDescription& network) {
  std::map<std::string, int> values = {{kInputId, 0}};
  std::vector<std::string> known = {kInputId};
  std::vector<int> uses(network.layers.size() + 1, 0);
  std::vector<std::vector<int>> inputs;
  for (const LayerDescription& layer : network.layers) {
    const std::string name = layer_name(network.name, layer);
    std::vector<std::string> ids = layer.inputs;
    if (ids.empty()) ids.push_back(known.back());
    if (static_cast<int>(ids.size()) != inputs_wanted(layer)) {
      fail_usage(name + ": got " + std::to_string(ids.size()) + " input(s), but needs " +
                 std::to_string(inputs_wanted(layer)));
    }
    inputs.emplace_back();
    for (const std::string& id : ids) {
      const auto found = values.find(id);
      if (found == values.end()) {
        fail_usage(name + ": " + unknown_name_message("input", id, known) +
                   " (inputs come from layers before it)");
      }
      inputs.back().push_back(found->second);
      ++uses[found->second];
    }
    if (!values.emplace(layer.id, static_cast<int>(inputs.size())).second) {
      fail_usage(name + ": the id is taken by an earlier layer or by the input; ids must differ");
    }
    known.push_back(layer.id);
  }
  for (size_t i = 0; i + 1 < network.layers.size(); ++i) {
    if (uses[i + 1] == 0) {
      fail_usage(layer_name(network.name, network.layers[i]) +
                 ": nobody uses its output, and it is not the last layer");
    }
  }
  return inputs;
}

ShapedNetwork infer_shapes(const NetworkDescription& network, const ValueShape& input, int classes) {
  if (network.layers.empty()) fail_usage("network '" + network.name + "': has no layers");
  ShapedNetwork shaped;
  shaped.description = network;
  shaped.inputs = resolve_inputs(network);
  shaped.shapes = {input};
  shaped.consumers.resize(network.layers.size() + 1);
  for (int i = 0; i < shaped.layers(); ++i) {
    LayerDescription& layer = shaped.description.layers[i];
    if (layer.type == "linear" && layer.channels == 0) layer.channels = classes;
    for (int value : shaped.inputs[i]) shaped.consumers[value].push_back(i);
    try {
      shaped.shapes.push_back(output_shape(layer, shaped.in(i), &shaped.shapes[shaped.inputs[i].back()]));
    } catch (const Error& error) {
      throw Error(layer_name(network.name, layer) + ": " + error.what(), error.kind());
    }
  }
  const ValueShape& logits = shaped.shapes.back();
  if (!logits.is_flat() || logits.c != classes || logits.from_h * logits.from_w > 1) {
    fail_usage(layer_name(network.name, network.layers.back()) + ": its output is " + logits.str() +
               ", but the last layer must give 1x1x" + std::to_string(classes) +
               ", one logit a class of the data");
  }
  return shaped;
}

std::vector<int> residual_batchnorms(const ShapedNetwork& network) {
  std::vector<int> depth(network.shapes.size(), 0);  // layers on the longest path to a value
  std::vector<int> found;
  for (int i = 0; i < network.layers(); ++i) {
    const std::vector<int>& inputs = network.inputs[i];
    for (const int value : inputs) depth[i + 1] = std::max(depth[i + 1], depth[value] + 1);
    if (network.layer(i).type != "add" || depth[inputs[0]] == depth[inputs[1]]) continue;
    const int branch = depth[inputs[0]] > depth[inputs[1]] ? inputs[0] : inputs[1];
    if (network.layer(branch - 1).type == "batchnorm" && network.consumers[branch].size() == 1) {
      found.push_back(branch - 1);
    }
  }
  return found;
}

Conv2dProblem conv2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  const Conv2dProblem p = {.n = n,
                           .h = in.h,
                           .w = in.w,
                           .c = in.c,
                           .k = layer.channels,
                           .r = layer.kernel_h,
                           .s = layer.kernel_w,
                           .stride_h = layer.stride_h,
                           .stride_w = layer.stride_w,
                           .pad_h = layer.pad_h,
                           .pad_w = layer.pad_w,
                           .bias = layer.bias,
                           .dtype = dtype};
  p.validate();
  return p;
}

BatchnormProblem batchnorm_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  const BatchnormProblem p = {
      .n = n, .h = in.h, .w = in.w, .c = in.c, .eps = layer.eps, .momentum = layer.momentum, .dtype = dtype};
  p.validate();
  return p;
}

namespace {

// What convolutions without channels of their own and pools have in common.
template <class Problem>
Problem window_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  Problem p;
  p.n = n;
  p.h = in.h;
  p.w = in.w;
  p.c = in.c;
  p.r = layer.kernel_h;
  p.s = layer.kernel_w;
  p.stride_h = layer.stride_h;
  p.stride_w = layer.stride_w;
  p.pad_h = layer.pad_h;
  p.pad_w = layer.pad_w;
  p.dtype = dtype;
  if constexpr (requires { p.bias; }) p.bias = layer.bias;
  p.validate();
  return p;
}

}  // namespace

DepthwiseConv2dProblem depthwise_conv2d_problem(const LayerDescription& layer, const ValueShape& in, int n,
                                                DType dtype) {
  return window_problem<DepthwiseConv2dProblem>(layer, in, n, dtype);
}

MaxPool2dProblem max_pool2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  return window_problem<MaxPool2dProblem>(layer, in, n, dtype);
}

AvgPool2dProblem avg_pool2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  return window_problem<AvgPool2dProblem>(layer, in, n, dtype);
}

GlobalMaxPoolProblem global_max_pool_problem(const ValueShape& in, int n, DType dtype) {
  return {.n = n, .h = in.h, .w = in.w, .c = in.c, .dtype = dtype};
}

GlobalAvgPoolProblem global_avg_pool_problem(const ValueShape& in, int n, DType dtype) {
  return {.n = n, .h = in.h, .w = in.w, .c = in.c, .dtype = dtype};
}

LinearProblem linear_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype) {
  const LinearProblem p = {.n = n, .c = in.c, .k = layer.channels, .bias = layer.bias, .dtype = dtype};
  p.validate();
  return p;
}

}  // namespace kiln
