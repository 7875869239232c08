// The backward half of lower(): layers in reverse, each giving gradients to its inputs. The first
// contribution to a value's gradient is the gradient; a later one is added.
#include "nn/lowering.h"

namespace kiln {
namespace {

class Backward {
 public:
  explicit Backward(Lowering* lowering)
      : l_(*lowering),
        gradient_(l_.network.shapes.size(), kNoBuffer),
        needed_(l_.network.shapes.size(), false) {
    for (int i = 0; i < l_.network.layers(); ++i) {
      const std::string& type = l_.network.layer(i).type;
      bool needed = type == "conv2d" || type == "linear" || type == "batchnorm";
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
                          add_problem(l_.network.shapes[value], n(), dtype()),
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
                                 {dy(), l_.weight(layer_), gradient_[input()]});
      return;
    }
    const int dx = contribution(input());
    l_.steps.emit<Conv2dDgrad>(Phase::kBackward, layer.id, p, {dy(), l_.weight(layer_), dx});
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

  void batchnorm() {
    const Lowering::Saved& saved = l_.saved[layer_];
    const int dx = contribution(input());
    l_.steps.emit<BatchnormBwd>(Phase::kBackward, l_.batchnorm_name(layer_), l_.batchnorm(layer_),
                                {dy(), l_.input_buffer(layer_), l_.gamma(layer_), l_.beta(layer_), saved.mean,
                                 saved.rstd, dx, l_.weight_gradient(layer_), l_.bias_gradient(layer_)});
    contribute(input(), dx);
  }

  void add() {
    if (l_.options.fusions.add_grad_alias) {
      const int gradient = dy();
      contribute(input(0), gradient);
      contribute(input(1), gradient);
      return;
    }
    const int da = contribution(input(0)), db = contribution(input(1));
    l_.steps.emit<AddBwd>(Phase::kBackward, l_.id(layer_), add_problem(l_.network.in(layer_), n(), dtype()),
                          {dy(), da, db});
    contribute(input(0), da);
    contribute(input(1), db);
  }

  void backward_layer() {
    const LayerDescription& layer = l_.network.layer(layer_);
    const ValueShape& in = l_.network.in(layer_);
    if (layer.type == "conv2d") return conv2d();
    if (layer.type == "linear") return linear();
    if (layer.type == "batchnorm") return batchnorm();
    if (layer.type == "add") return add();
    if (layer.type == "flatten" || l_.absorbed[layer_]) return contribute(input(), dy());
    const int dx = contribution(input());
    if (layer.type == "relu") {
      l_.steps.emit<ReluBwd>(Phase::kBackward, layer.id, relu_problem(in, n(), dtype()),
                             {dy(), l_.output_buffer(layer_), dx});
    } else if (layer.type == "max_pool2d") {
      MaxPool2dProblem p = max_pool2d_problem(layer, in, n(), dtype());
      p.arg = PoolArg::kArg8;
      l_.steps.emit<MaxPool2dBwd>(Phase::kBackward, layer.id, p, {dy(), l_.saved[layer_].arg, dx});
    } else {
      l_.steps.emit<GlobalAvgPoolBwd>(Phase::kBackward, layer.id, global_avg_pool_problem(in, n(), dtype()),
                                      {dy(), dx});
    }
    contribute(input(), dx);
  }

  Lowering& l_;
  int layer_ = 0;              // the layer being done
  std::vector<int> gradient_;  // a value: its gradient so far
  std::vector<bool> needed_;   // a value: parameters lie before it
};

}  // namespace

void lower_backward(Lowering* lowering, int logits_gradient) { Backward(lowering).run(logits_gradient); }

}  // namespace kiln
