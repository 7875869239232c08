#include "nn/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

constexpr size_t kAlignElements = 128;

size_t aligned(size_t elements) { return (elements + kAlignElements - 1) / kAlignElements * kAlignElements; }

// Calls visit(torch index, slab index) for every element.
template <class Visit>
void for_each_element(const Parameter& p, const Visit& visit) {
  if (p.kind == ParameterKind::kConvWeight) {  // OIHW <-> KRSC
    const int64_t channels = p.shape[1], height = p.shape[2], width = p.shape[3];
    size_t torch = 0;
    for (int64_t k = 0; k < p.shape[0]; ++k) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t r = 0; r < height; ++r) {
          for (int64_t s = 0; s < width; ++s) visit(torch++, ((k * height + r) * width + s) * channels + c);
        }
      }
    }
  } else if (p.kind == ParameterKind::kDepthwiseWeight) {  // [C,1,R,S] <-> RSC
    const int64_t channels = p.shape[0], taps = p.shape[2] * p.shape[3];
    size_t torch = 0;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) visit(torch++, tap * channels + c);
    }
  } else if (p.kind ==
             ParameterKind::kLinearWeight) {  // features (channel, row, column) <-> (row, column, channel)
    const int64_t pixels = int64_t{1} * p.from_h * p.from_w, channels = p.shape[1] / pixels;
    size_t torch = 0;
    for (int64_t k = 0; k < p.shape[0]; ++k) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < pixels; ++i) visit(torch++, k * p.shape[1] + i * channels + c);
      }
    }
  } else {
    for (int64_t i = 0; i < p.count(); ++i) visit(i, i);
  }
}

}  // namespace

long long Parameter::count() const {
  return std::accumulate(shape.begin(), shape.end(), 1LL, [](long long a, int64_t b) { return a * b; });
}

std::string shape_str(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void ParameterLayout::add(int layer, const std::string& name, ParameterKind kind, std::vector<int64_t> shape,
                          double bound) {
  parameters_.push_back(
      {.name = name, .layer = layer, .kind = kind, .shape = std::move(shape), .bound = bound});
}

void ParameterLayout::add_weights(int index, const LayerDescription& layer, ParameterKind kind,
                                  std::vector<int64_t> shape, int from_h, int from_w) {
  double fan_in = 1;  // products that one output sums
  for (size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
  const double bound = 1.0 / std::sqrt(fan_in);
  const int64_t outputs = shape[0];
  add(index, layer.id + ".weight", kind, std::move(shape), bound);
  parameters_.back().from_h = from_h;
  parameters_.back().from_w = from_w;
  if (layer.bias) add(index, layer.id + ".bias", ParameterKind::kBias, {outputs}, bound);
}

ParameterLayout::ParameterLayout(const ShapedNetwork& network) : network_(network.description.name) {
  for (int i = 0; i < network.layers(); ++i) {
    const LayerDescription& layer = network.layer(i);
    const ValueShape& in = network.in(i);
    if (layer.type == "conv2d") {
      add_weights(i, layer, ParameterKind::kConvWeight,
                  {layer.channels, in.c, layer.kernel_h, layer.kernel_w});
    } else if (layer.type == "depthwise_conv2d") {
      add_weights(i, layer, ParameterKind::kDepthwiseWeight, {in.c, 1, layer.kernel_h, layer.kernel_w});
    } else if (layer.type == "linear") {
      add_weights(i, layer, ParameterKind::kLinearWeight, {layer.channels, in.c}, in.from_h, in.from_w);
    } else if (layer.type == "batchnorm") {
      add(i, layer.id + ".weight", ParameterKind::kGamma, {in.c}, 0);
      add(i, layer.id + ".bias", ParameterKind::kBeta, {in.c}, 0);
      for (const auto& [name, initial] : {std::pair{".running_mean", 0.0f}, {".running_var", 1.0f}}) {
        statistics_.push_back({layer.id + name, i, in.c, initial, statistics_elements_});
        statistics_elements_ += aligned(in.c);
      }
      trackers_.push_back(layer.id + ".num_batches_tracked");
    }
  }
  const std::vector<int> ends = residual_batchnorms(network);
  for (Parameter& p : parameters_) {
    p.ends_residual = p.kind == ParameterKind::kGamma && std::ranges::count(ends, p.layer) > 0;
  }
  for (bool decayed : {true, false}) {
    for (Parameter& p : parameters_) {
      if (p.decayed() != decayed) continue;
      p.offset = slab_elements_;
      slab_elements_ += aligned(p.count());
    }
    if (decayed) decayed_elements_ = slab_elements_;
  }
  if (slab_elements_ == 0)
    fail_usage("network '" + network.description.name + "': has no parameters to train");
}

long long ParameterLayout::parameter_count() const {
  long long count = 0;
  for (const Parameter& p : parameters_) count += p.count();
  return count;
}

const Parameter& ParameterLayout::parameter(int layer, bool weight) const {
  for (const Parameter& p : parameters_) {
    const bool is_weight = p.decayed() || p.kind == ParameterKind::kGamma;
    if (p.layer == layer && is_weight == weight) return p;
  }
  fail_failure("layer " + std::to_string(layer) + " has no such parameter");
}

const Statistic& ParameterLayout::statistic(int layer, bool mean) const {
  for (size_t i = 0; i < statistics_.size(); i += 2) {
    if (statistics_[i].layer == layer) return statistics_[mean ? i : i + 1];
  }
  fail_failure("layer " + std::to_string(layer) + " has no statistics");
}

std::vector<float> ParameterLayout::initial_parameters(uint64_t seed, bool zero_init_residual) const {
  if (zero_init_residual && std::ranges::none_of(parameters_, &Parameter::ends_residual)) {
    fail_usage("zero_init_residual: network '" + network_ +
               "' has no residual branch that ends in a batchnorm before its add");
  }
  std::vector<float> slab(slab_elements_, 0.0f);
  for (size_t index = 0; index < parameters_.size(); ++index) {
    const Parameter& p = parameters_[index];
    const float bound = static_cast<float>(p.bound);
    Philox4 draw{};
    for_each_element(p, [&](size_t torch, size_t inside) {
      if (p.bound == 0) {
        const bool one = p.kind == ParameterKind::kGamma && !(zero_init_residual && p.ends_residual);
        slab[p.offset + inside] = one ? 1.0f : 0.0f;
        return;
      }
      if (torch % 4 == 0)
        draw = philox(seed, PhiloxStream::kWeights, torch / 4, static_cast<uint32_t>(index));
      slab[p.offset + inside] = bound * (2.0f * uniform01(draw.v[torch % 4]) - 1.0f);
    });
  }
  return slab;
}

std::vector<float> ParameterLayout::initial_statistics() const {
  std::vector<float> slab(statistics_elements_, 0.0f);
  for (const Statistic& s : statistics_) std::fill_n(slab.begin() + s.offset, s.channels, s.initial);
  return slab;
}

void to_slab_order(const Parameter& parameter, const float* torch, float* slab) {
  for_each_element(parameter, [&](size_t outside, size_t inside) { slab[inside] = torch[outside]; });
}

void to_torch_order(const Parameter& parameter, const float* slab, float* torch) {
  for_each_element(parameter, [&](size_t outside, size_t inside) { torch[outside] = slab[inside]; });
}

}  // namespace kiln
