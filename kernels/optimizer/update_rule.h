// sgd's and adamw's update of one parameter as code that the CPU's and the CUDA implementations share. The
// judge (cpu_naive) does not use it.
//
// A rule is made once a launch or a block from the problem, the step state and the gradient's norm, in
// double, and then applied to every parameter in `Real`. kStates values travel with a parameter: sgd's
// velocity; adamw's first and second moment.
#pragma once

#include <cmath>

#include "kernels/common/philox.h"  // KILN_HOST_DEVICE
#include "kernels/optimizer/optimizer.h"

namespace kiln {

// min(1, clip / (norm + 1e-6)), the same bits everywhere: one IEEE addition and division in fp32. norm: null
// without clipping.
KILN_HOST_DEVICE inline float clip_scale(float clip, const float* norm) {
  return norm ? fminf(1.0f, clip / (*norm + 1e-6f)) : 1.0f;
}

// 1 - beta^t by repeated squaring: 2 log2(t) multiplications where log and exp in double would take hundreds
// of instructions. In double the result has more digits than fp32 for every beta that fp32 holds: rounding
// errors of t 2^-53 of beta^t are at most 2^-53 / (1 - beta) of the result.
KILN_HOST_DEVICE inline double bias_correction(float beta, unsigned long long t) {
  double power = 1, square = beta;
  for (; t; t >>= 1) {
    if (t & 1) power *= square;
    square *= square;
  }
  return 1 - power;
}

template <class Real>
struct SgdRule {
  using Step = SgdStep;
  static constexpr int kStates = 1;
  Real lr, scale, momentum, weight_decay;
  Real of_gradient, of_velocity;  // the step's direction: 0 and 1, with Nesterov 1 and momentum

  KILN_HOST_DEVICE static SgdRule make(const SgdProblem& p, const StepState& step, const float* norm) {
    return {step.lr,        clip_scale(p.clip, norm),       p.momentum,
            p.weight_decay, p.nesterov ? Real(1) : Real(0), p.nesterov ? Real(p.momentum) : Real(1)};
  }
  // w: the parameter; g: its gradient; decays: it is one of the first `decayed`.
  KILN_HOST_DEVICE void update(Real& w, Real g, Real (&state)[1], bool decays) const {
    g = scale * g + (decays ? weight_decay : Real(0)) * w;
    state[0] = momentum * state[0] + g;
    w -= lr * (of_gradient * g + of_velocity * state[0]);
  }
};

template <class Real>
struct AdamwRule {
  using Step = AdamwStep;
  static constexpr int kStates = 2;
  Real scale, keep;                   // keep: what decay leaves of a parameter
  Real beta1, of_gradient;            // of_gradient: 1 - beta1
  Real beta2, of_square;              // of_square: 1 - beta2
  Real rate, second_correction, eps;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)

  KILN_HOST_DEVICE static AdamwRule make(const AdamwProblem& p, const StepState& step, const float* norm) {
    const unsigned long long t = step.step + 1ULL;
    const double lr = step.lr, b1 = p.beta1, b2 = p.beta2;
    return {clip_scale(p.clip, norm),
            static_cast<Real>(1 - lr * p.weight_decay),
            p.beta1,
            static_cast<Real>(1 - b1),
            p.beta2,
            static_cast<Real>(1 - b2),
            static_cast<Real>(lr / bias_correction(p.beta1, t)),
            static_cast<Real>(1 / sqrt(bias_correction(p.beta2, t))),
            p.eps};
  }
  KILN_HOST_DEVICE void update(Real& w, Real g, Real (&state)[2], bool decays) const {
    g *= scale;
    state[0] = beta1 * state[0] + of_gradient * g;
    state[1] = beta2 * state[1] + of_square * (g * g);
    w = (decays ? keep : Real(1)) * w - rate * state[0] / (std::sqrt(state[1]) * second_correction + eps);
  }
};

}  // namespace kiln
