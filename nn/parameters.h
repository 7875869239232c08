// Parameters by name: PyTorch's shapes outside, one contiguous slab in kiln's layouts inside.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/layer_rules.h"

namespace kiln {

enum class ParameterKind { kConvWeight, kDepthwiseWeight, kLinearWeight, kBias, kGamma, kBeta };

struct Parameter {
  std::string name;  // "<layer id>.weight", "<layer id>.bias"
  int layer = 0;
  ParameterKind kind{};
  std::vector<int64_t> shape;  // PyTorch's: conv OIHW (depthwise: I = 1), linear [out, in], else [channels]
  int from_h = 1, from_w = 1;  // linear behind a flatten: the image's height and width
  double bound = 0;            // of the uniform initial distribution, 0: constant (gamma 1, beta 0)
  bool ends_residual = false;  // gamma of one of residual_batchnorms
  size_t offset = 0;           // elements from the slab's start
  long long count() const;
  bool decayed() const {  // a conv or linear weight
    return kind == ParameterKind::kConvWeight || kind == ParameterKind::kDepthwiseWeight ||
           kind == ParameterKind::kLinearWeight;
  }
};

// running_mean and running_var of a batchnorm, in a slab of their own.
struct Statistic {
  std::string name;
  int layer = 0;
  int channels = 0;
  float initial = 0;
  size_t offset = 0;
};

std::string shape_str(const std::vector<int64_t>& shape);  // "[64, 3, 3, 3]"

// Where everything lies. Decayed parameters (conv and linear weights) come first in the slab, so that the
// optimizer needs one number to know them. Tensors begin at multiples of 128 elements (256 bytes in bf16);
// padding between them is and stays zero.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ShapedNetwork& network);

  const std::vector<Parameter>& parameters() const {
    return parameters_;
  }  // in layer order, weight before bias
  const std::vector<Statistic>& statistics() const { return statistics_; }  // mean before var
  const std::vector<std::string>& trackers() const { return trackers_; }    // "<id>.num_batches_tracked"
  size_t slab_elements() const { return slab_elements_; }
  size_t decayed_elements() const { return decayed_elements_; }
  size_t statistics_elements() const { return statistics_elements_; }
  long long parameter_count() const;  // without padding

  const Parameter& parameter(int layer, bool weight) const;
  const Statistic& statistic(int layer, bool mean) const;

  // The slab at the start: PyTorch's default distributions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights
  // and biases of conv and linear layers, from Philox keyed by (seed, index of the parameter, element in
  // PyTorch's order): independent of the inner layout and of the device. zero_init_residual: the gammas that
  // end a residual branch are 0 instead of 1, so that each block starts as its shortcut; throws Error where
  // the network has none.
  std::vector<float> initial_parameters(uint64_t seed, bool zero_init_residual = false) const;
  std::vector<float> initial_statistics() const;

 private:
  void add(int layer, const std::string& name, ParameterKind kind, std::vector<int64_t> shape, double bound);
  // The weight, and the bias where the layer has one; shape[0] counts the outputs.
  void add_weights(int index, const LayerDescription& layer, ParameterKind kind, std::vector<int64_t> shape,
                   int from_h = 1, int from_w = 1);
  std::vector<Parameter> parameters_;
  std::vector<Statistic> statistics_;
  std::vector<std::string> trackers_;
  std::string network_;
  size_t slab_elements_ = 0, decayed_elements_ = 0, statistics_elements_ = 0;
};

// One parameter between PyTorch's element order and the slab's.
void to_slab_order(const Parameter& parameter, const float* torch, float* slab);
void to_torch_order(const Parameter& parameter, const float* slab, float* torch);

}  // namespace kiln
