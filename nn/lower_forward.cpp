// The forward half of lower(): layers in order, one step each unless fused or a view.
#include "nn/lowering.h"

namespace kiln {

int Lowering::value_buffer_of(const std::string& name, int value) {
  return steps.arena(
      name, static_cast<size_t>(options.batch) * network.shapes[value].elements() * size_of(options.dtype));
}

int Lowering::parameter(int layer, bool weight, Home home, const char* suffix) {
  const Parameter& p = layout.parameter(layer, weight);
  const size_t size = home == Home::kWeights ? size_of(options.dtype) : sizeof(float);
  return steps.buffer(p.name + suffix, home, p.offset * size, static_cast<size_t>(p.count()) * size);
}

int Lowering::weight(int layer) { return parameter(layer, true, Home::kWeights, ""); }
int Lowering::weight_gradient(int layer) { return parameter(layer, true, Home::kGradients, ".grad"); }
int Lowering::bias(int layer) {
  return network.layer(layer).bias ? parameter(layer, false, Home::kMaster, "") : kNoBuffer;
}
int Lowering::bias_gradient(int layer) {
  const LayerDescription& l = network.layer(layer);
  return l.bias || l.type == "batchnorm" ? parameter(layer, false, Home::kGradients, ".grad") : kNoBuffer;
}
int Lowering::running(int layer, bool mean) {
  const Statistic& s = layout.statistic(layer, mean);
  return steps.buffer(s.name, Home::kStatistics, s.offset * sizeof(float), s.channels * sizeof(float));
}

int Lowering::absorbed_relu(int layer) const {
  const std::vector<int>& consumers = network.consumers[layer + 1];
  return consumers.size() == 1 && absorbed[consumers[0]] ? consumers[0] : -1;
}

BatchnormProblem Lowering::batchnorm(int layer) const {
  BatchnormProblem p =
      batchnorm_problem(network.layer(layer), network.in(layer), options.batch, options.dtype);
  p.relu = absorbed_relu(layer) >= 0;
  return p;
}

std::string Lowering::batchnorm_name(int layer) const {
  const int relu = absorbed_relu(layer);
  return relu < 0 ? id(layer) : id(layer) + " + " + id(relu);
}

namespace {

void forward_batchnorm(Lowering* l, int i) {
  StepBuilder& s = l->steps;
  const BatchnormProblem p = l->batchnorm(i);
  const int x = l->input_buffer(i), y = l->output_buffer(i);
  if (!l->options.training) {
    s.emit<BatchnormFwdInfer>(Phase::kForward, l->batchnorm_name(i), p,
                              {x, l->gamma(i), l->beta(i), l->running(i, true), l->running(i, false), y});
    return;
  }
  l->saved[i].mean = s.arena(l->id(i) + ".saved_mean", sizeof(float) * p.c);
  l->saved[i].rstd = s.arena(l->id(i) + ".saved_rstd", sizeof(float) * p.c);
  s.emit<BatchnormFwdTrain>(Phase::kForward, l->batchnorm_name(i), p,
                            {x, l->gamma(i), l->beta(i), l->running(i, true), l->running(i, false), y,
                             l->saved[i].mean, l->saved[i].rstd});
}

void forward_max_pool(Lowering* l, int i) {
  MaxPool2dProblem p =
      max_pool2d_problem(l->network.layer(i), l->network.in(i), l->options.batch, l->options.dtype);
  int& arg = l->saved[i].arg;
  if (l->options.training) {
    p.arg = PoolArg::kArg8;
    arg = l->steps.arena(l->id(i) + ".arg", static_cast<size_t>(p.n) * l->network.out(i).elements());
    l->steps.list().kinks[l->id(i) + ".arg"] = arg;
  }
  l->steps.emit<MaxPool2dFwd>(Phase::kForward, l->id(i), p, {l->input_buffer(i), l->output_buffer(i), arg});
}

void forward_layer(Lowering* l, int i) {
  StepBuilder& s = l->steps;
  const LayerDescription& layer = l->network.layer(i);
  const ValueShape& in = l->network.in(i);
  const int n = l->options.batch;
  const DType dtype = l->options.dtype;
  const int x = l->input_buffer(i), y = l->output_buffer(i);
  if (layer.type == "conv2d") {
    s.emit<Conv2dFwd>(Phase::kForward, layer.id, conv2d_problem(layer, in, n, dtype),
                      {x, l->weight(i), l->bias(i), y});
  } else if (layer.type == "linear") {
    s.emit<LinearFwd>(Phase::kForward, layer.id, linear_problem(layer, in, n, dtype),
                      {x, l->weight(i), l->bias(i), y});
  } else if (layer.type == "batchnorm") {
    forward_batchnorm(l, i);
  } else if (layer.type == "relu") {
    s.emit<ReluFwd>(Phase::kForward, layer.id, relu_problem(in, n, dtype), {x, y});
    s.list().kinks[layer.id + ".y"] = y;
  } else if (layer.type == "add") {
    s.emit<AddFwd>(Phase::kForward, layer.id, add_problem(in, n, dtype), {x, l->input_buffer(i, 1), y});
  } else if (layer.type == "max_pool2d") {
    forward_max_pool(l, i);
  } else if (layer.type == "global_avg_pool") {
    s.emit<GlobalAvgPoolFwd>(Phase::kForward, layer.id, global_avg_pool_problem(in, n, dtype), {x, y});
  }
}

// True where the implementations that a batchnorm alone would get also take it with a ReLU: a fusion does not
// overrule the user's choice (the vendor's batchnorm takes none).
bool offers_relu(const Lowering& l, int batchnorm) {
  const BatchnormProblem plain = l.batchnorm(batchnorm);
  BatchnormProblem fused = plain;
  fused.relu = true;
  const std::string& id = l.id(batchnorm);
  if (!l.options.training) return l.steps.offers<BatchnormFwdInfer>(id, plain, fused);
  return l.steps.offers<BatchnormFwdTrain>(id, plain, fused) &&
         l.steps.offers<BatchnormBwd>(id, plain, fused);
}

}  // namespace

void lower_forward(Lowering* l) {
  const ShapedNetwork& network = l->network;
  for (int i = 0; i < network.layers(); ++i) {
    const int input = network.inputs[i][0];
    l->absorbed[i] = l->options.fusions.bn_relu && network.layer(i).type == "relu" && input > 0 &&
                     network.layer(input - 1).type == "batchnorm" && network.consumers[input].size() == 1 &&
                     offers_relu(*l, input - 1);
  }
  for (int i = 0; i < network.layers(); ++i) {
    if (network.layer(i).type == "flatten" || l->absorbed[i]) {  // a view of its input
      l->value_buffer[i + 1] = l->input_buffer(i);
      continue;
    }
    l->value_buffer[i + 1] = l->value_buffer_of(l->id(i) + ".y", i + 1);
    forward_layer(l, i);
  }
}

}  // namespace kiln
