#include "nn/lower.h"

#include <algorithm>

#include "kernels/optimizer/optimizer.h"
#include "kernels/softmax_xent/softmax_xent.h"
#include "nn/lowering.h"
#include "nn/step_finish.h"

namespace kiln {
namespace {

// The images of the batch, from the resident data set.
void lower_input(Lowering* l) {
  StepList& list = l->steps.list();
  const ValueShape& shape = l->network.shapes[0];
  list.input = l->value_buffer_of("input", 0);
  list.labels = l->steps.arena("labels", sizeof(int32_t) * l->options.batch);
  l->value_buffer[0] = list.input;
  if (l->options.augment.m == 0) return;
  AugmentProblem p = l->options.augment;
  p.n = l->options.batch;
  p.h = shape.h;
  p.w = shape.w;
  p.c = shape.c;
  p.dtype = l->options.dtype;
  StepBuilder& s = l->steps;
  const size_t images = static_cast<size_t>(p.m);
  s.emit<AugmentFwd>(Phase::kInput, "input", p,
                     {s.buffer("step", Home::kStepState, 0, sizeof(StepState)),
                      s.buffer("images", Home::kImages, 0, images * shape.elements()),
                      s.buffer("image_labels", Home::kLabels, 0, images * sizeof(int32_t)),
                      s.buffer("order", Home::kOrder, 0, images * sizeof(int32_t)),
                      s.buffer("mean", Home::kMean, 0, sizeof(float) * shape.c),
                      s.buffer("std", Home::kStd, 0, sizeof(float) * shape.c), list.input, list.labels});
}

// Returns the gradient of the logits, kNoBuffer in inference.
int lower_loss(Lowering* l) {
  StepList& list = l->steps.list();
  const int classes = l->network.shapes.back().c;
  const SoftmaxXentProblem p = {.n = l->options.batch,
                                .c = classes,
                                .smoothing = l->options.label_smoothing,
                                .dtype = l->options.dtype};
  list.logits = l->value_buffer.back();
  list.row_loss = l->steps.arena("row_loss", sizeof(float) * p.n);
  list.summary = l->steps.arena("summary", sizeof(float) * 2);
  if (!l->options.training) {
    l->steps.emit<SoftmaxXentFwd>(Phase::kLoss, "loss", p,
                                  {list.logits, list.labels, list.row_loss, list.summary});
    return kNoBuffer;
  }
  const int gradient = l->value_buffer_of(l->value_name(l->network.layers()) + ".dy", l->network.layers());
  l->steps.emit<SoftmaxXentFwdBwd>(Phase::kLoss, "loss", p,
                                   {list.logits, list.labels, list.row_loss, list.summary, gradient});
  return gradient;
}

void lower_finish(Lowering* l, int norm) {
  StepBuilder& s = l->steps;
  const uint32_t capacity = l->options.ring_capacity;
  const bool cuda = s.device().is_cuda();
  Step step{.phase = Phase::kUpdate,
            .layer = "loss",
            .pass = "step.finish",
            .impl = cuda ? "cuda" : "cpu",
            .buffers = {s.buffer("step", Home::kStepState, 0, sizeof(StepState)), s.list().summary, norm,
                        s.buffer("ring", Home::kRing, 0, sizeof(StepRecord) * capacity)}};
  step.bind = [cuda, capacity](std::span<void* const> p, void*) {
    const StepFinishArgs args = {.state = p[0], .summary = p[1], .norm = p[2], .ring = p[3]};
#ifdef KILN_WITH_CUDA
    if (cuda) return bind_step_finish_cuda(args, capacity);
#endif
    static_cast<void>(cuda);
    return bind_step_finish_cpu(args, capacity);
  };
  s.emit_custom(std::move(step));
}

void lower_update(Lowering* l) {
  StepBuilder& s = l->steps;
  const ParameterLayout& layout = l->layout;
  const size_t count = layout.slab_elements(), bytes = count * sizeof(float);
  const LowerOptions& o = l->options;
  const int gradients = s.buffer("gradients", Home::kGradients, 0, bytes);
  const int norm = s.arena("grad_norm", sizeof(float));
  s.emit<GradNorm>(Phase::kUpdate, "optimizer", {.n = static_cast<long long>(count)}, {gradients, norm});
  lower_finish(l, norm);
  const SgdProblem p = {.n = static_cast<long long>(count),
                        .decayed = static_cast<long long>(layout.decayed_elements()),
                        .momentum = o.momentum,
                        .weight_decay = o.weight_decay,
                        .nesterov = o.nesterov && o.momentum > 0,
                        .dtype = o.dtype};
  const int copy =
      o.dtype == DType::kF32 ? kNoBuffer : s.buffer("weights", Home::kWeights, 0, count * size_of(o.dtype));
  s.emit<SgdStep>(
      Phase::kUpdate, "optimizer", p,
      {s.buffer("step", Home::kStepState, 0, sizeof(StepState)), gradients,
       s.buffer("masters", Home::kMaster, 0, bytes), s.buffer("velocity", Home::kVelocity, 0, bytes), copy});
}

}  // namespace

std::vector<std::string> Fusions::names() { return {"bn_relu", "add_grad_alias", "dgrad_acc"}; }

Fusions Fusions::without(const std::vector<std::string>& off) {
  Fusions fusions;
  for (const std::string& name : off) {
    const bool all = name == "all";
    if (all || name == "bn_relu") fusions.bn_relu = false;
    if (all || name == "add_grad_alias") fusions.add_grad_alias = false;
    if (all || name == "dgrad_acc") fusions.dgrad_acc = false;
    std::vector<std::string> known = names();
    known.push_back("all");
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail_usage(unknown_name_message("fusion", name, known));
    }
  }
  return fusions;
}

StepList lower(const ShapedNetwork& network, const ParameterLayout& layout, const Device& device,
               const LowerOptions& options) {
  StepList list;
  Lowering l = {.network = network,
                .layout = layout,
                .options = options,
                .steps = StepBuilder(device, options.impl, network.description.name, &list),
                .value_buffer = std::vector<int>(network.shapes.size(), kNoBuffer),
                .absorbed = std::vector<bool>(network.layers(), false),
                .saved = std::vector<Lowering::Saved>(network.layers())};
  lower_input(&l);
  lower_forward(&l);
  const int logits_gradient = lower_loss(&l);
  if (options.training) {
    lower_backward(&l, logits_gradient);
    lower_update(&l);
  } else {
    lower_finish(&l, kNoBuffer);
  }
  list.values = l.value_buffer;
  return list;
}

void StepBuilder::require_fitting(const std::string& layer, const char* op, const char* pass,
                                  const std::vector<TensorSpec>& tensors,
                                  const std::vector<int>& buffers) const {
  const auto fail = [&](const std::string& what) {
    fail_failure("network '" + network_ + "': layer '" + layer + "': " + op + "." + pass + ": " + what);
  };
  if (tensors.size() != buffers.size()) fail("lowered with a wrong number of buffers");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t have = buffers[i] == kNoBuffer ? 0 : list_->buffers[buffers[i]].bytes;
    const size_t want = tensors[i].role == Role::kAbsent ? 0 : tensors[i].bytes();
    if (have != want) {
      fail("'" + tensors[i].name + "' needs " + std::to_string(want) + " bytes, lowered with " +
           std::to_string(have));
    }
  }
}

}  // namespace kiln
