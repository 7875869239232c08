// The forward half of lower(): layers in order, one step each unless absorbed or a view.
#include "nn/lowering.h"
#include "nn/step_fold.h"

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

namespace {

// The batchnorm `i` with what it absorbed, into y.
void forward_batchnorm(Lowering* l, int i, int y) {
  StepBuilder& s = l->steps;
  const BatchnormProblem p = l->batchnorm(i);
  const int x = l->input_buffer(i), gamma = l->gamma(i), beta = l->beta(i);
  const int mean = l->running(i, true), var = l->running(i, false);
  const int residual = p.residual ? l->value_buffer[l->absorbed[i].residual] : kNoBuffer;
  if (!l->options.training) {
    s.emit<BatchnormFwdInfer>(Phase::kForward, l->fused_name(i), p, {x, gamma, beta, mean, var, residual, y});
    return;
  }
  const Lowering::Given given = l->given[i];
  const bool is_given = given.mean != kNoBuffer;
  Lowering::Saved& saved = l->saved[i];
  saved.mean = is_given ? given.mean : s.arena(l->id(i) + ".saved_mean", sizeof(float) * p.c);
  saved.rstd = s.arena(l->id(i) + ".saved_rstd", sizeof(float) * p.c);
  if (p.masked()) {
    saved.mask = s.arena(l->id(i) + ".mask", static_cast<size_t>(p.per_channel()) * p.mask_bytes_per_pixel());
  }
  if (p.pool) {
    const std::string name = l->id(l->absorbed[i].pool) + ".arg";
    saved.arg = s.arena(name, static_cast<size_t>(p.n) * p.out_h() * p.out_w() * p.arg_bytes_per_pixel());
    s.list().kinks[name] = {Kink::Kind::kArg2, saved.arg, p.c};
  }
  if (is_given) {
    s.emit<BatchnormFwdGiven>(
        Phase::kForward, l->fused_name(i), p,
        {x, gamma, beta, residual, given.mean, given.var, mean, var, y, saved.rstd, saved.mask, saved.arg});
  } else {
    s.emit<BatchnormFwdTrain>(
        Phase::kForward, l->fused_name(i), p,
        {x, gamma, beta, residual, mean, var, y, saved.mean, saved.rstd, saved.mask, saved.arg});
  }
}

// The buffer for the positions of a max_pool2d's 2x2 windows, 2 bits each, which step `head` saves.
int new_arg2(Lowering* l, int head, int pool) {
  const ValueShape& out = l->network.out(pool);
  const std::string name = l->id(pool) + ".arg";
  const size_t pixels = static_cast<size_t>(l->options.batch) * out.h * out.w;
  const int arg = l->steps.arena(name, pixels * ((out.c + 3) / 4));
  l->steps.list().kinks[name] = {Kink::Kind::kArg2, arg, out.c};
  l->saved[head].arg2 = true;
  return l->saved[head].arg = arg;
}

// The conv2d `i` with what it absorbed, into y.
void forward_conv2d(Lowering* l, int i, int y) {
  const Lowering::Absorbed& with = l->absorbed[i];
  const Lowering::Folded folded = with.batchnorm >= 0 ? l->folded[with.batchnorm] : Lowering::Folded{};
  const int bias = with.batchnorm >= 0 ? folded.shift : l->bias(i);
  const int residual = with.add >= 0 ? l->value_buffer[with.residual] : kNoBuffer;
  Conv2dProblem p = l->conv2d(i, with);
  const int arg = p.pool_arg ? new_arg2(l, i, with.pool) : kNoBuffer;
  Lowering::Given stats;
  p.stats = l->gives_stats(i);
  if (p.stats) {
    stats.mean = l->steps.arena(l->id(i) + ".mean", sizeof(float) * p.k);
    stats.var = l->steps.arena(l->id(i) + ".var", sizeof(float) * p.k);
    l->given[l->network.consumers[i + 1][0]] = stats;
  }
  l->steps.emit<Conv2dFwd>(
      Phase::kForward, l->fused_name(i), p,
      {l->input_buffer(i), l->weight(i), folded.scale, bias, residual, y, arg, stats.mean, stats.var});
}

// One step ahead of all: scale and shift of the batchnorms that conv2ds absorbed.
void forward_folds(Lowering* l) {
  constexpr size_t kBuffers = 7;  // of a batchnorm
  StepBuilder& s = l->steps;
  const bool cuda = s.device().is_cuda();
  Step step{
      .phase = Phase::kForward, .layer = "batchnorms", .pass = "step.fold", .impl = cuda ? "cuda" : "cpu"};
  std::vector<StepFold> folds;
  for (int conv = 0; conv < l->network.layers(); ++conv) {
    const int bn = l->absorbed[conv].batchnorm;
    if (bn < 0) continue;
    const int channels = l->network.in(bn).c;
    Lowering::Folded& folded = l->folded[bn];
    folded.scale = s.arena(l->id(bn) + ".scale", sizeof(float) * channels);
    folded.shift = s.arena(l->id(bn) + ".shift", sizeof(float) * channels);
    for (const int buffer : {l->gamma(bn), l->beta(bn), l->running(bn, true), l->running(bn, false),
                             l->bias(conv), folded.scale, folded.shift}) {
      step.buffers.push_back(buffer);
    }
    folds.push_back({.channels = channels, .eps = l->network.layer(bn).eps});
  }
  if (folds.empty()) return;
  step.bind = [cuda, folds](std::span<void* const> p, void*) {
    std::vector<StepFold> bound = folds;
    for (size_t i = 0; i < bound.size(); ++i) {
      const auto at = [&](size_t which) { return static_cast<float*>(p[i * kBuffers + which]); };
      bound[i].gamma = at(0), bound[i].beta = at(1), bound[i].mean = at(2), bound[i].var = at(3);
      bound[i].bias = at(4), bound[i].scale = at(5), bound[i].shift = at(6);
    }
#ifdef KILN_WITH_CUDA
    if (cuda) return bind_step_fold_cuda(bound);
#endif
    static_cast<void>(cuda);
    return bind_step_fold_cpu(bound);
  };
  s.emit_custom(std::move(step));
}

// The buffer for the positions that a max pool saves.
int new_arg(Lowering* l, int i, size_t bytes_each) {
  const size_t outputs = static_cast<size_t>(l->options.batch) * l->network.out(i).elements();
  const std::string name = l->id(i) + ".arg";
  const int arg = l->steps.arena(name, outputs * bytes_each);
  l->steps.list().kinks[name] = {Kink::Kind::kArg, arg};
  return l->saved[i].arg = arg;
}

// Whether the implementations that a training max_pool2d would get also take 2 bits a position.
bool takes_arg2(const Lowering& l, int i, const MaxPool2dProblem& arg8) {
  if (arg8.r != 2 || arg8.s != 2) return false;
  MaxPool2dProblem arg2 = arg8;
  arg2.arg = PoolArg::kArg2;
  return l.steps.offers<MaxPool2dFwd>(l.id(i), arg8, arg2) &&
         l.steps.offers<MaxPool2dBwd>(l.id(i), arg8, arg2);
}

void forward_pool(Lowering* l, int i) {
  StepBuilder& s = l->steps;
  const LayerDescription& layer = l->network.layer(i);
  const ValueShape& in = l->network.in(i);
  const int n = l->options.batch, x = l->input_buffer(i), y = l->output_buffer(i);
  const DType dtype = l->options.dtype;
  const bool training = l->options.training;
  if (layer.type == "max_pool2d") {
    MaxPool2dProblem p = max_pool2d_problem(layer, in, n, dtype);
    int arg = kNoBuffer;
    if (training) {
      p.arg = PoolArg::kArg8;
      arg = takes_arg2(*l, i, p) ? new_arg2(l, i, i) : new_arg(l, i, 1);
      if (l->saved[i].arg2) p.arg = PoolArg::kArg2;
    }
    s.emit<MaxPool2dFwd>(Phase::kForward, layer.id, p, {x, y, arg});
  } else if (layer.type == "avg_pool2d") {
    s.emit<AvgPool2dFwd>(Phase::kForward, layer.id, avg_pool2d_problem(layer, in, n, dtype), {x, y});
  } else if (layer.type == "global_max_pool") {
    GlobalMaxPoolProblem p = global_max_pool_problem(in, n, dtype);
    p.arg = training;
    s.emit<GlobalMaxPoolFwd>(Phase::kForward, layer.id, p,
                             {x, y, training ? new_arg(l, i, sizeof(int32_t)) : kNoBuffer});
  } else {
    s.emit<GlobalAvgPoolFwd>(Phase::kForward, layer.id, global_avg_pool_problem(in, n, dtype), {x, y});
  }
}

template <class Pass>
void forward_activation(Lowering* l, int i) {
  const auto p =
      elementwise_problem<typename Pass::Problem>(l->network.in(i), l->options.batch, l->options.dtype);
  l->steps.emit<Pass>(Phase::kForward, l->id(i), p, {l->input_buffer(i), l->output_buffer(i)});
}

void forward_layer(Lowering* l, int i) {
  StepBuilder& s = l->steps;
  const LayerDescription& layer = l->network.layer(i);
  const ValueShape& in = l->network.in(i);
  const int n = l->options.batch;
  const DType dtype = l->options.dtype;
  const int x = l->input_buffer(i), y = l->output_buffer(i);
  if (layer.type == "conv2d") {
    forward_conv2d(l, i, y);
  } else if (layer.type == "depthwise_conv2d") {
    s.emit<DepthwiseConv2dFwd>(Phase::kForward, layer.id, depthwise_conv2d_problem(layer, in, n, dtype),
                               {x, l->weight(i), l->bias(i), y});
  } else if (layer.type == "linear") {
    s.emit<LinearFwd>(Phase::kForward, layer.id, linear_problem(layer, in, n, dtype),
                      {x, l->weight(i), l->bias(i), y});
  } else if (layer.type == "batchnorm") {
    forward_batchnorm(l, i, y);
  } else if (layer.type == "relu") {
    forward_activation<ReluFwd>(l, i);
    s.list().kinks[layer.id + ".y"] = {Kink::Kind::kRelu, y};
  } else if (layer.type == "relu6") {
    forward_activation<Relu6Fwd>(l, i);
    s.list().kinks[layer.id + ".y"] = {Kink::Kind::kRelu6, y};
  } else if (layer.type == "gelu") {
    forward_activation<GeluFwd>(l, i);
  } else if (layer.type == "silu") {
    forward_activation<SiluFwd>(l, i);
  } else if (layer.type == "add") {
    s.emit<AddFwd>(Phase::kForward, layer.id, elementwise_problem<AddProblem>(in, n, dtype),
                   {x, l->input_buffer(i, 1), y});
  } else {
    forward_pool(l, i);
  }
}

}  // namespace

void lower_forward(Lowering* l) {
  const ShapedNetwork& network = l->network;
  forward_folds(l);
  for (int i = 0; i < network.layers(); ++i) {
    const std::string& type = network.layer(i).type;
    const int head = l->absorbed_by[i];
    // What absorbed an add waits for it: there the residual is ready.
    if (l->absorbed[i].add >= 0) continue;
    if (type == "flatten" || (head >= 0 && type != "add")) {  // a view of its input
      l->value_buffer[i + 1] = l->input_buffer(i);
      continue;
    }
    const int last = l->absorbed[i].pool >= 0 ? l->absorbed[i].pool : i;  // whose size y has
    const int y = l->value_buffer[i + 1] = l->value_buffer_of(l->id(i) + ".y", last + 1);
    if (head >= 0) {
      l->value_buffer[head + 1] = y;
      const int batchnorm = l->absorbed[head].batchnorm;
      if (batchnorm >= 0) l->value_buffer[batchnorm + 1] = y;
      (network.layer(head).type == "conv2d" ? forward_conv2d : forward_batchnorm)(l, head, y);
    } else {
      forward_layer(l, i);
    }
  }
}

}  // namespace kiln
