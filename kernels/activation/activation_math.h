// The activations of activation.h as functions of one value, for float and double, on host and device: what
// the elementwise kernels, the CPU and fused epilogues compute.
//
// A slope is the derivative at the pre-activation u. Slopes of relu and relu6 are 0 at their kinks (PyTorch's
// choice) and where u is NaN; multiply by them only what is finite, or select: inf * 0 is NaN. gelu and silu
// of -inf and their slopes at both infinities are NaN, as PyTorch's formulas give. No approximate intrinsics.
#pragma once

#include <cmath>

#include "kernels/common/host_device.h"

namespace kiln {

KILN_HOST_DEVICE inline float exp_of(float v) { return ::expf(v); }
KILN_HOST_DEVICE inline double exp_of(double v) { return ::exp(v); }

// Compared so that NaN fails the tests and is passed on; -0 becomes +0.
template <class F>
KILN_HOST_DEVICE inline F relu(F u) {
  return u <= F(0) ? F(0) : u;
}
template <class F>
KILN_HOST_DEVICE inline F relu_slope(F u) {
  return u > F(0) ? F(1) : F(0);
}

template <class F>
KILN_HOST_DEVICE inline F relu6(F u) {
  return u <= F(0) ? F(0) : u >= F(6) ? F(6) : u;
}
template <class F>
KILN_HOST_DEVICE inline F relu6_slope(F u) {
  return u > F(0) && u < F(6) ? F(1) : F(0);
}

// Phi(u), the normal distribution function. In double without cancellation far below 0; in fp32 as PyTorch
// does, within 1e-7.
KILN_HOST_DEVICE inline float normal_cdf(float u) { return 0.5f * (1.0f + ::erff(u * 0.707106781f)); }
KILN_HOST_DEVICE inline double normal_cdf(double u) { return 0.5 * ::erfc(u * -0.70710678118654752440); }

template <class F>
KILN_HOST_DEVICE inline F gelu(F u) {
  return u * normal_cdf(u);
}
template <class F>
KILN_HOST_DEVICE inline F gelu_slope(F u) {
  constexpr F kRsqrt2Pi = F(0.39894228040143267794);
  return normal_cdf(u) + u * (kRsqrt2Pi * exp_of(F(-0.5) * u * u));
}

template <class F>
KILN_HOST_DEVICE inline F sigmoid(F u) {
  return F(1) / (F(1) + exp_of(-u));
}
template <class F>
KILN_HOST_DEVICE inline F silu(F u) {
  return u / (F(1) + exp_of(-u));
}
template <class F>
KILN_HOST_DEVICE inline F silu_slope(F u) {
  const F s = sigmoid(u);
  return s * (F(1) + u * (F(1) - s));
}

// An op as a type: y = fwd(x), dx = bwd(dy, saved), where saved is y for relu and relu6 and x for the others.
// kExact: fp32 arithmetic gives the true result rounded to fp32, and double is no better.
struct Relu {
  static constexpr bool kExact = true;
  template <class F>
  KILN_HOST_DEVICE static F fwd(F x) {
    return relu(x);
  }
  template <class F>
  KILN_HOST_DEVICE static F bwd(F dy, F y) {
    return y > F(0) ? dy : F(0);
  }
};

struct Relu6 {
  static constexpr bool kExact = true;
  template <class F>
  KILN_HOST_DEVICE static F fwd(F x) {
    return relu6(x);
  }
  template <class F>
  KILN_HOST_DEVICE static F bwd(F dy, F y) {
    return y > F(0) && y < F(6) ? dy : F(0);
  }
};

struct Gelu {
  static constexpr bool kExact = false;
  template <class F>
  KILN_HOST_DEVICE static F fwd(F x) {
    return gelu(x);
  }
  template <class F>
  KILN_HOST_DEVICE static F bwd(F dy, F x) {
    return dy * gelu_slope(x);
  }
};

struct Silu {
  static constexpr bool kExact = false;
  template <class F>
  KILN_HOST_DEVICE static F fwd(F x) {
    return silu(x);
  }
  template <class F>
  KILN_HOST_DEVICE static F bwd(F dy, F x) {
    return dy * silu_slope(x);
  }
};

}  // namespace kiln
