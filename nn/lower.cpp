#include "nn/lower.h"

#include "kernels/softmax_xent/softmax_xent.h"
#include "nn/lowering.h"

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

}  // namespace

StepList lower(const ShapedNetwork& network, const ParameterLayout& layout, const Device& device,
               const LowerOptions& options) {
  StepList list;
  Lowering l = {.network = network,
                .layout = layout,
                .options = options,
                .steps = StepBuilder(device, options.impl, network.description.name, &list),
                .value_buffer = std::vector<int>(network.shapes.size(), kNoBuffer),
                .absorbed_by = std::vector<int>(network.layers(), -1),
                .absorbed = std::vector<Lowering::Absorbed>(network.layers()),
                .saved = std::vector<Lowering::Saved>(network.layers()),
                .folded = std::vector<Lowering::Folded>(network.layers()),
                .given = std::vector<Lowering::Given>(network.layers())};
  lower_input(&l);
  decide_fusions(&l);
  lower_forward(&l);
  list.logits = l.value_buffer.back();
  if (options.training) {
    lower_backward(&l, lower_loss(&l));
    lower_update(&l);
  } else if (options.loss) {
    lower_loss(&l);
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
