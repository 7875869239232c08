// The backward half of lower(): layers in reverse, each giving gradients to its inputs. The first
// contribution to a value's gradient is the gradient; a later one is added. A batchnorm that absorbed an add
// is done in that add's place.
#include "nn/lowering.h"

namespace kiln {
namespace {

class Backward {
 public:
  explicit Backward(Lowering* lowering)
      : l_(*lowering),
        gradient_(l_.network.shapes.size(), kNoBuffer),
        needed_(l_.network.shapes.size(), false),
        gone_through_(l_.network.layers(), false) {
    for (int i = 0; i < l_.network.layers(); ++i) {
      const std::string& type = l_.network.layer(i).type;
      bool needed = type == "conv2d" || type == "depthwise_conv2d" || type == "linear" || type == "batchnorm";
      for (int value : l_.network.inputs[i]) needed = needed || needed_[value];
      needed_[i + 1] = needed;
    }
  }

  void run(int logits_gradient) {
    gradient_.back() = logits_gradient;
    for (layer_ = l_.network.layers() - 1; layer_ >= 0; --layer_) {
      if (needed_[layer_ + 1]) backward_layer();
    }
  }

 private:
  int input(int which = 0) const { return l_.network.inputs[layer_][which]; }
  int dy() const { return gradient_[layer_ + 1]; }
  int n() const { return l_.options.batch; }
  DType dtype() const { return l_.options.dtype; }
  int new_gradient(int value, const char* suffix) {
    return l_.value_buffer_of(l_.value_name(value) + suffix, value);
  }

  // True where a gradient that is still to be read, other than `value`'s own, lies in the same buffer: then
  // it must not be added to in place. Gradients up to this layer's output are still to be read.
  bool shared(int value) const {
    for (int other = 0; other <= layer_ + 1; ++other) {
      if (other != value && gradient_[other] == gradient_[value]) return true;
    }
    return false;
  }

  // `buffer` holds a whole contribution to the gradient of `value`.
  void contribute(int value, int buffer) {
    if (!needed_[value]) return;
    if (gradient_[value] == kNoBuffer) {
      gradient_[value] = buffer;
      return;
    }
    const int sum = new_gradient(value, ".dy_sum");
    l_.steps.emit<AddFwd>(Phase::kBackward, l_.value_name(value),
                          elementwise_problem<AddProblem>(l_.network.shapes[value], n(), dtype()),
                          {gradient_[value], buffer, sum});
    gradient_[value] = sum;
  }

  // A new buffer for this layer's contribution to `value`; contribute() it once it is written.
  int contribution(int value) {
    return new_gradient(value, gradient_[value] == kNoBuffer ? ".dy" : ".dy_other");
  }

  void conv2d() {
    const LayerDescription& layer = l_.network.layer(layer_);
    const Conv2dProblem p = conv2d_problem(layer, l_.network.in(layer_), n(), dtype());
    l_.steps.emit<Conv2dWgrad>(
        Phase::kBackward, layer.id, p,
        {dy(), l_.input_buffer(layer_), l_.weight_gradient(layer_), l_.bias_gradient(layer_)});
    if (!needed_[input()]) return;
    Conv2dProblem accumulating = p;
    accumulating.accumulate = true;
    if (l_.options.fusions.dgrad_acc && gradient_[input()] != kNoBuffer && !shared(input()) &&
        l_.steps.offers<Conv2dDgrad>(layer.id, p, accumulating)) {
      l_.steps.emit<Conv2dDgrad>(Phase::kBackward, layer.id, accumulating,
                                 {dy(), l_.weight(layer_), kNoBuffer, gradient_[input()]});
      return;
    }
    const int dx = contribution(input());
    const int act = activation_of_input();
    Conv2dProblem gated = p;
    if (act >= 0) gated.dact = l_.network.layer(act).type == "relu" ? ActKind::kRelu : ActKind::kRelu6;
    if (act >= 0 && l_.steps.offers<Conv2dDgrad>(layer.id, p, gated)) {
      gone_through_[act] = true;
      l_.steps.emit<Conv2dDgrad>(Phase::kBackward, layer.id + " + " + l_.id(act), gated,
                                 {dy(), l_.weight(layer_), l_.input_buffer(layer_), dx});
    } else {
      l_.steps.emit<Conv2dDgrad>(Phase::kBackward, layer.id, p, {dy(), l_.weight(layer_), kNoBuffer, dx});
    }
    contribute(input(), dx);
  }

  // The relu or relu6 whose output this layer alone reads, perhaps pooled by the conv2d that does it: a
  // maximum has a slope where its activation has one. -1: none.
  int activation_of_input() const {
    const int value = input();
    if (!l_.options.fusions.dgrad_act || value == 0 || l_.network.consumers[value].size() != 1) return -1;
    int act = value - 1;
    if (const int head = l_.absorbed_by[act]; head >= 0) {
      const bool pooled = l_.network.layer(head).type == "conv2d" && l_.absorbed[head].pool == act;
      act = pooled ? l_.absorbed[head].act : -1;
    }
    if (act < 0) return -1;
    const std::string& type = l_.network.layer(act).type;
    return type == "relu" || type == "relu6" ? act : -1;
  }

  // This max_pool2d, which conv2d `head` did, and the activation before it: that is gone through at the
  // maxima, where the gradient is.
  void pool_of_conv2d(int head) {
    const Lowering::Absorbed& with = l_.absorbed[head];
    const ValueShape& out = l_.network.out(layer_);
    int gradient = dy();
    if (with.act >= 0 && !gone_through_[with.act]) {
      const int masked = new_gradient(layer_ + 1, ".dy_act");
      const std::vector<int> buffers = {gradient, l_.output_buffer(layer_), masked};
      if (l_.network.layer(with.act).type == "relu") {
        l_.steps.emit<ReluBwd>(Phase::kBackward, l_.id(with.act),
                               elementwise_problem<ReluBwd::Problem>(out, n(), dtype()), buffers);
      } else {
        l_.steps.emit<Relu6Bwd>(Phase::kBackward, l_.id(with.act),
                                elementwise_problem<Relu6Bwd::Problem>(out, n(), dtype()), buffers);
      }
      gradient = masked;
    }
    MaxPool2dProblem p = max_pool2d_problem(l_.network.layer(layer_), l_.network.in(layer_), n(), dtype());
    p.arg = PoolArg::kArg2;
    const int dx = contribution(input());
    l_.steps.emit<MaxPool2dBwd>(Phase::kBackward, l_.id(layer_), p, {gradient, l_.saved[head].arg, dx});
    contribute(input(), dx);
  }

  void depthwise_conv2d() {
    const LayerDescription& layer = l_.network.layer(layer_);
    const DepthwiseConv2dProblem p = depthwise_conv2d_problem(layer, l_.network.in(layer_), n(), dtype());
    l_.steps.emit<DepthwiseConv2dWgrad>(
        Phase::kBackward, layer.id, p,
        {dy(), l_.input_buffer(layer_), l_.weight_gradient(layer_), l_.bias_gradient(layer_)});
    if (!needed_[input()]) return;
    const int dx = contribution(input());
    l_.steps.emit<DepthwiseConv2dDgrad>(Phase::kBackward, layer.id, p, {dy(), l_.weight(layer_), dx});
    contribute(input(), dx);
  }

  void linear() {
    const LayerDescription& layer = l_.network.layer(layer_);
    const LinearProblem p = linear_problem(layer, l_.network.in(layer_), n(), dtype());
    l_.steps.emit<LinearWgrad>(
        Phase::kBackward, layer.id, p,
        {dy(), l_.input_buffer(layer_), l_.weight_gradient(layer_), l_.bias_gradient(layer_)});
    if (!needed_[input()]) return;
    const int dx = contribution(input());
    l_.steps.emit<LinearDgrad>(Phase::kBackward, layer.id, p, {dy(), l_.weight(layer_), dx});
    contribute(input(), dx);
  }

  // The batchnorm `i` with what it absorbed; dy() is the gradient of the last of these.
  void batchnorm(int i) {
    const Lowering::Saved& saved = l_.saved[i];
    const Lowering::Absorbed& absorbed = l_.absorbed[i];
    const BatchnormProblem p = l_.batchnorm(i);
    const int in = l_.network.inputs[i][0];
    const int dx = contribution(in);
    const int dresidual = p.masked() ? contribution(absorbed.residual) : kNoBuffer;
    l_.steps.emit<BatchnormBwd>(
        Phase::kBackward, l_.fused_name(i), p,
        {dy(), l_.input_buffer(i), l_.gamma(i), l_.beta(i), saved.mean, saved.rstd, saved.mask, saved.arg, dx,
         l_.weight_gradient(i), l_.bias_gradient(i), dresidual});
    const int gradient = dy();
    contribute(in, dx);
    if (p.residual) contribute(absorbed.residual, p.masked() ? dresidual : gradient);
  }

  void add() {
    if (l_.options.fusions.add_grad_alias) {
      const int gradient = dy();
      contribute(input(0), gradient);
      contribute(input(1), gradient);
      return;
    }
    const int da = contribution(input(0)), db = contribution(input(1));
    l_.steps.emit<AddBwd>(Phase::kBackward, l_.id(layer_),
                          elementwise_problem<AddProblem>(l_.network.in(layer_), n(), dtype()),
                          {dy(), da, db});
    contribute(input(0), da);
    contribute(input(1), db);
  }

  // `saved`: the output or the input, as the pass wants.
  template <class Pass>
  void activation(int saved) {
    const auto p = elementwise_problem<typename Pass::Problem>(l_.network.in(layer_), n(), dtype());
    const int dx = contribution(input());
    l_.steps.emit<Pass>(Phase::kBackward, l_.id(layer_), p, {dy(), saved, dx});
    contribute(input(), dx);
  }

  void pool() {
    const LayerDescription& layer = l_.network.layer(layer_);
    const ValueShape& in = l_.network.in(layer_);
    const int dx = contribution(input());
    if (layer.type == "max_pool2d") {
      MaxPool2dProblem p = max_pool2d_problem(layer, in, n(), dtype());
      p.arg = l_.saved[layer_].arg2 ? PoolArg::kArg2 : PoolArg::kArg8;
      l_.steps.emit<MaxPool2dBwd>(Phase::kBackward, layer.id, p, {dy(), l_.saved[layer_].arg, dx});
    } else if (layer.type == "avg_pool2d") {
      l_.steps.emit<AvgPool2dBwd>(Phase::kBackward, layer.id, avg_pool2d_problem(layer, in, n(), dtype()),
                                  {dy(), dx});
    } else if (layer.type == "global_max_pool") {
      GlobalMaxPoolProblem p = global_max_pool_problem(in, n(), dtype());
      p.arg = true;
      l_.steps.emit<GlobalMaxPoolBwd>(Phase::kBackward, layer.id, p, {dy(), l_.saved[layer_].arg, dx});
    } else {
      l_.steps.emit<GlobalAvgPoolBwd>(Phase::kBackward, layer.id, global_avg_pool_problem(in, n(), dtype()),
                                      {dy(), dx});
    }
    contribute(input(), dx);
  }

  void backward_layer() {
    const std::string& type = l_.network.layer(layer_).type;
    if (l_.absorbed[layer_].add >= 0) return;  // done where its add was
    if (l_.absorbed_by[layer_] >= 0) {
      const int head = l_.absorbed_by[layer_];
      if (type == "max_pool2d" && l_.network.layer(head).type == "conv2d") return pool_of_conv2d(head);
      return type == "add" ? batchnorm(l_.absorbed_by[layer_]) : contribute(input(), dy());
    }
    if (type == "flatten" || gone_through_[layer_]) return contribute(input(), dy());
    if (type == "conv2d") return conv2d();
    if (type == "depthwise_conv2d") return depthwise_conv2d();
    if (type == "linear") return linear();
    if (type == "batchnorm") return batchnorm(layer_);
    if (type == "add") return add();
    if (type == "relu") return activation<ReluBwd>(l_.output_buffer(layer_));
    if (type == "relu6") return activation<Relu6Bwd>(l_.output_buffer(layer_));
    if (type == "gelu") return activation<GeluBwd>(l_.input_buffer(layer_));
    if (type == "silu") return activation<SiluBwd>(l_.input_buffer(layer_));
    pool();
  }

  Lowering& l_;
  int layer_ = 0;              // the layer being done
  std::vector<int> gradient_;  // a value: its gradient so far
  std::vector<bool> needed_;   // a value: parameters lie before it
  // A layer: a relu or relu6 that the dgrad of the conv2d behind it went back through.
  std::vector<bool> gone_through_;
};

}  // namespace

void lower_backward(Lowering* lowering, int logits_gradient) { Backward(lowering).run(logits_gradient); }

}  // namespace kiln
