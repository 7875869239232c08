// StepProbe: one training step (or inference) taken apart, for tests: set every tensor, run forward and
// backward on given inputs, read losses, gradients and activations.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/lower.h"
#include "nn/network.h"
#include "nn/program.h"

namespace kiln {

class StepProbe {
 public:
  struct Options {
    DType precision = DType::kF32;
    ImplChoice impl = {};
    std::vector<std::string> fusions_off = {}, fusions_on = {};
    bool training = true;
    float label_smoothing = 0;
    OptimizerOptions optimizer = {};
    uint64_t seed = 0;
    bool zero_init_residual = false;
  };
  // By PyTorch's names, in PyTorch's layouts; running_mean and running_var too.
  using Tensors = std::map<std::string, std::vector<float>>;
  // By "<relu or relu6 id>.y": 1 where it lets pass; by "<max_pool2d id>.arg": the saved position, a byte
  // (also where it is stored in 2 bits), by "<global_max_pool id>.arg": four bytes (int32). An activation
  // that its batchnorm or conv2d does has none: switch bn_act, bn_residual and conv_pool off.
  using Kinks = std::map<std::string, std::vector<uint8_t>>;

  StepProbe(const NetworkDescription& network, const ValueShape& input, int classes, int batch,
            const Device& device, const Options& options);

  // Tensors that are not named keep their values. Throws Error for unknown names and wrong sizes.
  void set_parameters(const Tensors& tensors);
  Tensors parameters() const;
  Tensors gradients() const;

  // images: [batch, h, w, c]; labels: [batch]. Runs the forward pass and the loss (training: with its
  // gradient).
  void forward(const std::vector<float>& images, const std::vector<int32_t>& labels);
  double loss() const;                                         // mean of the rows' losses, taken in double
  std::vector<float> logits() const;                           // [batch, classes]
  std::vector<float> activation(const std::string& id) const;  // the layer's output, [batch, h, w, c]

  Kinks kinks() const;
  // Between forward and backward: makes the backward pass take the given side of every kink.
  void impose_kinks(const Kinks& kinks);

  void backward();        // training only
  void update(float lr);  // the optimizer's step with the gradients at hand

 private:
  std::vector<float> read(int buffer) const;  // fp32 or bf16 values as floats
  void write(int buffer, const std::vector<float>& values);
  DType dtype_;
  std::unique_ptr<Backend> backend_;
  Network network_;
  Program program_;
  Memory arena_, step_state_, ring_;
  uint32_t steps_ = 0;
};

}  // namespace kiln
