// The end of a step in lower(): the gradient norm, step.finish and the optimizer.
#include "kernels/optimizer/optimizer.h"
#include "nn/lowering.h"
#include "nn/step_finish.h"

namespace kiln {

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
  const size_t count = l->layout.slab_elements(), bytes = count * sizeof(float);
  const OptimizerOptions& o = l->options.optimizer;
  const DType dtype = l->options.dtype;
  const auto n = static_cast<long long>(count);
  const auto decayed = static_cast<long long>(l->layout.decayed_elements());
  const int gradients = s.buffer("gradients", Home::kGradients, 0, bytes);
  const int norm = s.arena("grad_norm", sizeof(float));
  s.emit<GradNorm>(Phase::kUpdate, "optimizer", {.n = n}, {gradients, norm});
  lower_finish(l, norm);

  const int state = s.buffer("step", Home::kStepState, 0, sizeof(StepState));
  const int clip_norm = o.clip_norm > 0 ? norm : kNoBuffer;
  const int masters = s.buffer("masters", Home::kMaster, 0, bytes);
  const int copy =
      dtype == DType::kF32 ? kNoBuffer : s.buffer("weights", Home::kWeights, 0, count * size_of(dtype));
  if (o.kind == Optimizer::kAdamw) {
    const AdamwProblem p = {.n = n,
                            .decayed = decayed,
                            .beta1 = o.beta1,
                            .beta2 = o.beta2,
                            .eps = o.eps,
                            .weight_decay = o.weight_decay,
                            .clip = o.clip_norm,
                            .dtype = dtype};
    s.emit<AdamwStep>(Phase::kUpdate, "optimizer", p,
                      {state, gradients, clip_norm, masters, s.buffer("exp_avg", Home::kVelocity, 0, bytes),
                       s.buffer("exp_avg_sq", Home::kSecondMoment, 0, bytes), copy});
    return;
  }
  const SgdProblem p = {.n = n,
                        .decayed = decayed,
                        .momentum = o.momentum,
                        .weight_decay = o.weight_decay,
                        .nesterov = o.nesterov && o.momentum > 0,
                        .clip = o.clip_norm,
                        .dtype = dtype};
  s.emit<SgdStep>(
      Phase::kUpdate, "optimizer", p,
      {state, gradients, clip_norm, masters, s.buffer("velocity", Home::kVelocity, 0, bytes), copy});
}

}  // namespace kiln
