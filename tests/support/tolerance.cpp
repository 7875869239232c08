#include "tests/support/tolerance.h"

#include <cmath>

namespace kiln {
namespace {

constexpr double kFp32Rounding = 0x1p-24;
constexpr double kTf32Rounding = 0x1p-11;
constexpr double kKinks = 4e-6;

double output_rounding(DType dtype) { return dtype == DType::kBF16 ? 0x1p-8 : kFp32Rounding; }

}  // namespace

Tolerance tolerance_for(const TensorSpec& spec, DType compute, FillMode mode, bool peer, double rms) {
  Tolerance t;
  if (spec.check == Check::kPosition) {
    t.bit_equal = true;
    if (mode == FillMode::kReal) t.outliers = 2 + spec.elements() / 16;
    return t;
  }
  const bool integers = spec.dtype == DType::kI32 || spec.dtype == DType::kU8;
  if (integers || spec.check == Check::kExact ||
      (spec.check == Check::kSum && mode == FillMode::kExact && !peer)) {
    t.bit_equal = true;
    return t;
  }
  // 1.01: the stored value is rounded from the implementation's, not from the judge's.
  const bool through_bf16 = peer && compute == DType::kBF16;
  const double rounding = 1.01 * output_rounding(through_bf16 ? DType::kBF16 : spec.dtype);
  if (spec.check == Check::kSum) {
    // The bound is for terms of about 1; products of the exact data's integers go up to 9.
    const double term = mode == FillMode::kExact ? 9 : 1;
    t.absolute = kFp32Rounding * (4 * spec.terms + 32) * spec.magnitude * term;
    // A sum that ends far out had partial sums of its size all the way: their roundings add up like a walk.
    t.relative = rounding + kFp32Rounding * 2 * std::sqrt(spec.terms);
    t.norm = 0.5 * t.absolute + rounding * rms;
  } else {
    const double growth = kFp32Rounding * (16 * std::sqrt(spec.terms) + 32);
    t.absolute = growth * spec.magnitude * rms;
    t.relative = growth + rounding;
    t.outliers = static_cast<long long>(kKinks * static_cast<double>(spec.elements()));
    t.norm = 0.5 * t.absolute + t.relative * rms;
  }
  if (compute == DType::kTF32) {
    const double tf32 = kTf32Rounding * 8 * std::sqrt(spec.terms) * spec.magnitude;
    t.absolute += tf32;
    t.norm += 0.5 * tf32;
  }
  return t;
}

bool within(const Tolerance& tolerance, DType stored, double got, double want) {
  if (!std::isfinite(got) || !std::isfinite(want)) return false;
  if (tolerance.bit_equal) {
    if (stored == DType::kBF16) want = round_to_bf16(static_cast<float>(want));
    return got == want;
  }
  return std::abs(got - want) <= tolerance.absolute + tolerance.relative * std::abs(want);
}

}  // namespace kiln
