// How far an implementation may be from the judge: the one place that says so.
//
// Exact data (small integers): sums of products (Check::kSum) and selections (Check::kExact) must be the
// judge's value rounded once to the output's type. Everything else is bounded, with e = 2^-24 (fp32 rounding)
// and u = the output type's rounding (2^-8 relative for bf16, 2^-24 for fp32):
//
//   kSum   |got - want| <= e * (4 T + 32) * magnitude + (u + 2 e sqrt(T)) * |want|
//          T terms of unit normal data: a sequential sum's error is about 0.2 e T, five times that in a
//          million elements; a sum that ends at w had partial sums of about w k / T on its way, whose
//          roundings walk to 0.33 e sqrt(T) |w|
//   kReal  |got - want| <= (e * (16 sqrt(T) + 32) + u) * |want| + e * (16 sqrt(T) + 32) * magnitude *
//   rms(want)
//   norm   sqrt(sum (got - want)^2) within the same with rms(want) for |want| and half the first
//   term
//
// kPosition: to the bit on exact data; on real data 2 + 1/16 of the bytes, of four positions each, may
// differ: of two values that bf16 makes equal, or that two orders of summation order differently, the judge
// may take the other.
//
// kMask: to the bit, against the same run's y (compare() in runner.h).
//
// tf32 rounds each factor to 2^-11: a further 2^-11 * 8 sqrt(T) * magnitude.
#pragma once

#include <cstdint>

#include "kernels/common/tensor_spec.h"
#include "tests/support/fill.h"

namespace kiln {

struct Tolerance {
  bool bit_equal = false;  // the judge's value rounded once to the output's type; else:
  double absolute = 0;     // |got - want| <= absolute + relative * |want|
  double relative = 0;
  double norm = 0;         // rms(got - want) <= norm
  long long outliers = 0;  // elements that may break the bound: see tolerance_for
};

// peer: bounded where kiln's own sums must be exact (a vendor may use a transform), and in bf16 an fp32
// output may have passed through bf16 (cuDNN's filter gradients). rms: of the judge's values. `outliers` is
// 4e-6 of the elements of kReal outputs, 0 below 250,000 elements: a pre-activation within rounding of ReLU's
// kink makes a gradient jump, and large tensors hold some.
Tolerance tolerance_for(const TensorSpec& spec, DType compute, FillMode mode, bool peer, double rms);

// Whether `got` is as good as `want`. NaN and infinity never are.
bool within(const Tolerance& tolerance, DType stored, double got, double want);

}  // namespace kiln
