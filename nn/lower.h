// lower(): from a network description to the steps of one batch size and mode. Fusion is decided here alone.
#pragma once

#include "kernels/augment/augment.h"
#include "kernels/common/impl_choice.h"
#include "nn/optimizer_options.h"
#include "nn/parameters.h"
#include "nn/step_list.h"

namespace kiln {

// The rewrites that lower() may do. Each can be switched off by its name, and conv_stats on wherever it can
// be done.
struct Fusions {
  bool bn_act = true;       // an activation that alone reads a batchnorm becomes part of it, both ways
  bool bn_residual = true;  // so does an add that alone reads it, with a relu or relu6 behind the add
  bool bn_pool = true;      // so does a max_pool2d of 2x2 windows that alone reads what a batchnorm gives
  bool add_grad_alias =
      true;               // the gradients of an add's inputs are the gradient of its output, without a copy
  bool dgrad_acc = true;  // a conv2d's dgrad adds into the gradient that another consumer left there
  // Inference: what alone reads a conv2d becomes its epilogue, one behind the other: its batchnorm (as scale
  // and shift), an add, an activation.
  bool conv_bn = true, conv_residual = true, conv_act = true;
  // A max_pool2d of 2x2 windows that alone reads the last of these becomes the conv2d's, if no add does; in
  // training one that alone reads a conv2d, or the relu or relu6 that alone reads a conv2d.
  bool conv_pool = true;
  // In training a conv2d whose output one batchnorm alone reads gives that batchnorm's statistics, where its
  // implementation says that the two gain by it (Impl::gains), or with conv_stats_anyway wherever it can.
  bool conv_stats = true, conv_stats_anyway = false;
  // A conv2d's dgrad goes back through the relu or relu6 whose output it alone reads.
  bool dgrad_act = true;
  static std::vector<std::string> names();
  // The usual ones, but those named in `off`; conv_stats anyway where `on` names it ("all": every one; `off`
  // is stronger).
  // Throws Error for an unknown name.
  static Fusions without(const std::vector<std::string>& off, const std::vector<std::string>& on = {});
};

struct LowerOptions {
  int batch = 1;
  bool training = true;  // else inference with the running statistics
  DType dtype = DType::kF32;
  Fusions fusions = {};
  ImplChoice impl = {};
  // Of `augment`, m, pad, pad_mode, flip and cut count; the rest is filled in. With m = 0 there is no input
  // phase: the caller writes the input and the labels.
  AugmentProblem augment{.m = 0};
  float label_smoothing = 0;
  OptimizerOptions optimizer = {};
  // Without, inference ends at the logits: it reads no labels, and gives no loss and no StepRecord.
  bool loss = true;
  uint32_t ring_capacity = 1;  // StepRecords
};

// Throws Error naming the layer whose problem no implementation (or not the wished one) supports.
StepList lower(const ShapedNetwork& network, const ParameterLayout& layout, const Device& device,
               const LowerOptions& options);

}  // namespace kiln
