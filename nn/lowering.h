// What the parts of lower() share.
#pragma once

#include "nn/lower.h"
#include "nn/step_builder.h"

namespace kiln {

struct Lowering {
  const ShapedNetwork& network;
  const ParameterLayout& layout;
  const LowerOptions& options;
  StepBuilder steps;

  std::vector<int> value_buffer;  // a value
  // A layer: the batchnorm or conv2d that does it too, -1: none. Absorbed are activations, adds and, by a
  // conv2d, batchnorms.
  std::vector<int> absorbed_by;
  // What a batchnorm or conv2d does beside itself: the layers it absorbed, -1 for none.
  struct Absorbed {
    int batchnorm = -1;
    int add = -1;
    int residual = -1;  // the value that the add joins
    int act = -1;
    int pool = -1;  // a max_pool2d of 2x2 windows, stride 2
  };
  std::vector<Absorbed> absorbed;  // a layer
  struct Saved {
    int mean = kNoBuffer, rstd = kNoBuffer, mask = kNoBuffer, arg = kNoBuffer;
    bool arg2 = false;  // the max_pool2d's positions are 2 bits each
  };
  std::vector<Saved> saved;  // a layer: what its backward needs
  struct Folded {
    int scale = kNoBuffer, shift = kNoBuffer;
  };
  std::vector<Folded> folded;  // a layer: of a batchnorm that a conv2d absorbed
  struct Given {
    int mean = kNoBuffer, var = kNoBuffer;
  };
  std::vector<Given> given;  // a layer: of a batchnorm whose input's maker gives the statistics

  const std::string& id(int layer) const { return network.layer(layer).id; }
  // The id of the layer that makes a value.
  std::string value_name(int value) const { return value == 0 ? kInputId : id(value - 1); }
  int value_buffer_of(const std::string& name, int value);  // a new arena buffer of a value's size
  int input_buffer(int layer, int which = 0) const { return value_buffer[network.inputs[layer][which]]; }
  int output_buffer(int layer) const { return value_buffer[layer + 1]; }

  // Buffers in slabs; kNoBuffer where the layer has no bias.
  int weight(int layer);
  int bias(int layer);
  int weight_gradient(int layer);
  int bias_gradient(int layer);
  int gamma(int layer) { return parameter(layer, true, Home::kMaster, ""); }
  int beta(int layer) { return parameter(layer, false, Home::kMaster, ""); }
  int running(int layer, bool mean);

  // The batchnorm's problem with what it would absorb, and with what it has absorbed.
  BatchnormProblem batchnorm(int layer, const Absorbed& with) const;
  BatchnormProblem batchnorm(int layer) const { return batchnorm(layer, absorbed[layer]); }
  // The same of a conv2d.
  Conv2dProblem conv2d(int layer, const Absorbed& with) const;
  bool gives_stats(int layer) const;        // whether the conv2d gives its reader, a batchnorm, statistics
  std::string fused_name(int layer) const;  // "bn2 + add + relu"

 private:
  int parameter(int layer, bool weight, Home home, const char* suffix);
};

void decide_fusions(Lowering* lowering);  // fills absorbed_by and absorbed
void lower_forward(Lowering* lowering);
void lower_backward(Lowering* lowering, int logits_gradient);
void lower_update(Lowering* lowering);
void lower_finish(Lowering* lowering, int norm);  // norm: buffer of the gradient norm, or kNoBuffer

}  // namespace kiln
