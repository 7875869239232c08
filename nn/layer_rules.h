// The layers' rules: who feeds whom, which shape comes out, and which op problem a layer is.
#pragma once

#include <string>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"
#include "kernels/linear/linear.h"
#include "kernels/pool2d/pool2d.h"
#include "nn/description.h"

namespace kiln {

inline constexpr const char* kInputId = "input";  // the images, as an id in `inputs`

// Height, width, channels of one image, or of one layer's output for one image (NHWC).
struct ValueShape {
  int h = 1, w = 1, c = 1;
  // Of a flattened image: c counts (row, column, channel) in this order, channel fastest. Checkpoints hold
  // the weight behind it in PyTorch's order (channel, row, column).
  int from_h = 1, from_w = 1;
  long long elements() const { return 1LL * h * w * c; }
  bool is_flat() const { return h == 1 && w == 1; }
  std::string str() const;  // "32x32x3"
  bool operator==(const ValueShape&) const = default;
};

// "network 'n': layer 'conv1' (conv2d)", for errors.
std::string layer_name(const std::string& network, const LayerDescription& layer);

// Value 0 is the input, value i + 1 the output of layer i. Returns each layer's input values. Throws Error
// for ids that are repeated, unknown or used before they are made, for a wrong number of inputs, and for
// outputs that nobody uses.
std::vector<std::vector<int>> resolve_inputs(const NetworkDescription& network);

// A description with shapes.
struct ShapedNetwork {
  NetworkDescription description;           // with the number of classes filled in
  std::vector<ValueShape> shapes;           // a value
  std::vector<std::vector<int>> inputs;     // a layer: values
  std::vector<std::vector<int>> consumers;  // a value: layers

  const LayerDescription& layer(int index) const { return description.layers[index]; }
  int layers() const { return static_cast<int>(description.layers.size()); }
  const ValueShape& in(int layer) const { return shapes[inputs[layer][0]]; }
  const ValueShape& out(int layer) const { return shapes[layer + 1]; }
};

// Throws Error naming the layer, what it got and what it needs.
ShapedNetwork infer_shapes(const NetworkDescription& network, const ValueShape& input, int classes);

// The batchnorms that end a residual branch, one of each add at most: its input from the longer path (in
// layers), where that is a batchnorm that the add alone reads. The shorter path is the shortcut, which may
// end in a batchnorm too; of equally long paths neither is the branch.
std::vector<int> residual_batchnorms(const ShapedNetwork& network);

// The problems of a layer with this input, for n images. They validate.
Conv2dProblem conv2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype);
BatchnormProblem batchnorm_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype);
DepthwiseConv2dProblem depthwise_conv2d_problem(const LayerDescription& layer, const ValueShape& in, int n,
                                                DType dtype);
MaxPool2dProblem max_pool2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype);
AvgPool2dProblem avg_pool2d_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype);
GlobalMaxPoolProblem global_max_pool_problem(const ValueShape& in, int n, DType dtype);
GlobalAvgPoolProblem global_avg_pool_problem(const ValueShape& in, int n, DType dtype);
LinearProblem linear_problem(const LayerDescription& layer, const ValueShape& in, int n, DType dtype);
// One of ReluProblem, Relu6Problem, GeluProblem, SiluProblem, AddProblem.
template <class Problem>
Problem elementwise_problem(const ValueShape& shape, int n, DType dtype) {
  return {{.n = n, .h = shape.h, .w = shape.w, .c = shape.c, .dtype = dtype}};
}

}  // namespace kiln
