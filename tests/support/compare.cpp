// compare(): an implementation's outputs against the judge's.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>

#include "tests/support/chunks.h"
#include "tests/support/runner.h"
#include "tests/support/tolerance.h"

namespace kiln {
namespace {

std::string coordinate(const std::vector<int64_t>& shape, int64_t index) {
  std::string text = "]";
  for (size_t d = shape.size(); d-- > 0;) {
    text = std::to_string(index % shape[d]) + text;
    if (d) text = "," + text;
    index /= shape[d];
  }
  return "[" + text;
}

// What is left of a tensor after the comparison of its elements.
struct Difference {
  long long wrong = 0;  // elements out of bounds
  int64_t first = -1;   // the first of them
  int64_t worst = -1;   // the one furthest beyond its bound; a value that is not finite is furthest
  double worst_excess = -1;
  double squares = 0;  // of the differences within bounds

  void merge(const Difference& next) {
    wrong += next.wrong;
    if (first < 0) first = next.first;
    if (next.worst_excess > worst_excess) {
      worst_excess = next.worst_excess;
      worst = next.worst;
    }
    squares += next.squares;
  }
};

Difference difference_of(const Tolerance& tolerance, DType stored, const TensorView& got,
                         const TensorView& want, int64_t begin, int64_t end) {
  Difference d;
  for (int64_t i = begin; i < end; ++i) {
    const double g = got.value(i), w = want.value(i);
    const double distance = std::abs(g - w);
    if (within(tolerance, stored, g, w)) {
      d.squares += distance * distance;
      continue;
    }
    ++d.wrong;
    if (d.first < 0) d.first = i;
    const double excess = std::isfinite(distance)
                              ? distance / (tolerance.absolute + tolerance.relative * std::abs(w) + 1e-30)
                              : INFINITY;
    if (excess > d.worst_excess) {
      d.worst_excess = excess;
      d.worst = i;
    }
  }
  return d;
}

struct Bf16 {
  uint16_t bits;
  operator float() const { return bf16_value(bits); }
};

bool is_fp32(DType dtype) { return dtype == DType::kF32 || dtype == DType::kTF32; }

bool same_bytes(const TensorView& got, const TensorView& want, int64_t first, int64_t count) {
  const size_t size = size_of(got.dtype);
  const auto at = [&](const TensorView& view) {
    return static_cast<const unsigned char*>(view.data) + static_cast<size_t>(first) * size;
  };
  return std::memcmp(at(got), at(want), static_cast<size_t>(count) * size) == 0;
}

// Whether all of `count` elements from `first` on are within(), and if so the sum of their squared
// differences: the same arithmetic without a call an element. Every wanted value is finite (compare() has
// seen their norm), so that NaN and infinity break the bound.
template <class Got>
bool all_within(const Tolerance& tolerance, DType stored, const TensorView& got_view,
                const TensorView& want_view, int64_t first, int64_t count, double* squares) {
  const Got* const got = static_cast<const Got*>(got_view.data) + first;
  const float* const want = static_cast<const float*>(want_view.data) + first;
  constexpr int64_t kLanes = 8;  // sums that do not wait for each other
  std::array<double, kLanes> sums{};
  bool good = true;
  if (tolerance.bit_equal) {
    const bool rounded = stored == DType::kBF16;
    for (int64_t i = 0; i < count; ++i) {
      const float g = got[i], w = rounded ? round_to_bf16(want[i]) : want[i];
      good &= g == w && std::isfinite(g);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const double w = want[i], distance = std::abs(static_cast<double>(static_cast<float>(got[i])) - w);
      good &= distance <= tolerance.absolute + tolerance.relative * std::abs(w);
      sums[i % kLanes] += distance * distance;
    }
  }
  for (const double sum : sums) *squares += sum;
  return good;
}

// difference_of(), which is called only for blocks in which all_within() found something.
Difference quick_difference_of(const Tolerance& tolerance, DType stored, const TensorView& got,
                               const TensorView& want, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 4096;
  const bool integers = got.dtype == want.dtype && (got.dtype == DType::kU8 || got.dtype == DType::kI32);
  const bool reals = is_fp32(want.dtype) && (is_fp32(got.dtype) || got.dtype == DType::kBF16);
  if (!reals && !(integers && tolerance.bit_equal))
    return difference_of(tolerance, stored, got, want, begin, end);
  Difference sum;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    Difference block;
    const bool good = integers ? same_bytes(got, want, first, count)
                      : got.dtype == DType::kBF16
                          ? all_within<Bf16>(tolerance, stored, got, want, first, count, &block.squares)
                          : all_within<float>(tolerance, stored, got, want, first, count, &block.squares);
    sum.merge(good ? block : difference_of(tolerance, stored, got, want, first, first + count));
  }
  return sum;
}

// The output that a reduced-precision copy is rounded from: the fp32 problem has no such tensor to judge it
// by.
const TensorView* original_of(const TensorSpec& spec, const std::vector<TensorSpec>& specs,
                              const std::vector<TensorView>& got) {
  if (spec.name != "copy") return nullptr;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == "param") return &got[i];
  }
  return nullptr;
}

// What a Check::kMask output must be: where the same run's "y" lies inside.
HostTensor mask_of(const TensorSpec& spec, const std::vector<TensorSpec>& specs,
                   const std::vector<TensorView>& got) {
  HostTensor mask(spec);
  size_t y = 0;
  while (specs[y].name != "y") ++y;
  const int64_t channels = specs[y].shape.back(), row = spec.shape.back();
  const int64_t pixels = specs[y].elements() / channels;
#pragma omp parallel for schedule(static) if (specs[y].elements() > 65536)
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) {
      const double value = got[y].value(pixel * channels + c);
      const bool inside = value > 0 && (spec.limit == 0 || value < static_cast<double>(spec.limit));
      mask.data[static_cast<size_t>(pixel * row + c / 8)] |= static_cast<unsigned char>(inside << c % 8);
    }
  }
  return mask;
}

// What a Check::kOwn output must be.
HostTensor own_of(const Case& c, const TensorSpec& spec, const std::vector<TensorSpec>& specs,
                  const std::vector<TensorView>& got, const HostTensors& inputs) {
  std::vector<const void*> tensors;
  for (size_t i = 0; i < specs.size(); ++i) {
    tensors.push_back(specs[i].is_output() ? got[i].data : inputs[i].data.data());
  }
  HostTensor own(spec);
  own.data = c.pass->positions(c.pass->parse(c.problem, c.dtype), tensors);
  return own;
}

// What a Check::kMean or kVariance output must be: that of each channel of the same run's "y".
HostTensor statistic_of(const TensorSpec& spec, const std::vector<TensorSpec>& specs,
                        const std::vector<TensorView>& got) {
  constexpr int64_t kParts = 64;
  size_t y = 0;
  while (specs[y].name != "y") ++y;
  const int64_t channels = specs[y].shape.back(), pixels = specs[y].elements() / channels;
  std::vector<double> mean(channels), squares(channels);
  for (const bool centred : {false, true}) {
    std::vector<double> sums(kParts * channels);
#pragma omp parallel for schedule(static) if (specs[y].elements() > 65536)
    for (int64_t part = 0; part < kParts; ++part) {
      for (int64_t pixel = pixels * part / kParts; pixel < pixels * (part + 1) / kParts; ++pixel) {
        for (int64_t c = 0; c < channels; ++c) {
          const double value = got[y].value(pixel * channels + c) - mean[c];
          sums[part * channels + c] += centred ? value * value : value;
        }
      }
    }
    std::vector<double>& of = centred ? squares : mean;
    for (int64_t i = 0; i < kParts * channels; ++i) {
      of[i % channels] += sums[i] / static_cast<double>(pixels);
    }
  }
  HostTensor statistic(spec);
  for (int64_t c = 0; c < channels; ++c) {
    statistic.as<float>()[c] = static_cast<float>(spec.check == Check::kMean ? mean[c] : squares[c]);
  }
  return statistic;
}

}  // namespace

Verdict compare(const Case& c, const std::vector<TensorView>& got, const Reference& want) {
  const std::vector<TensorSpec> specs = c.pass->tensors(c.pass->parse(c.problem, c.dtype));
  const std::vector<TensorView> references = views_of(want.outputs);
  for (size_t i = 0; i < specs.size(); ++i) {
    TensorSpec spec = specs[i];
    if (!spec.is_output()) continue;
    const TensorView* reference = &references[i];
    double rms = want.rms[i];
    if (want.outputs[i].spec.role == Role::kAbsent) {
      reference = original_of(spec, specs, got);
      if (!reference) return wrong_verdict(c, "output '" + spec.name + "' has no judge");
      spec.check = Check::kExact;
      rms = rms_of(*reference, spec.elements());
    }
    std::optional<HostTensor> derived;
    TensorView derived_view;
    if (spec.check == Check::kMask) {
      derived_view = {spec.dtype, derived.emplace(mask_of(spec, specs, got)).data.data()};
      reference = &derived_view;
      rms = 0;
    }
    if (spec.check == Check::kOwn) {
      derived_view = {spec.dtype, derived.emplace(own_of(c, spec, specs, got, want.inputs)).data.data()};
      reference = &derived_view;
      rms = 0;
    }
    if (spec.check == Check::kMean || spec.check == Check::kVariance) {
      derived_view = {spec.dtype, derived.emplace(statistic_of(spec, specs, got)).data.data()};
      reference = &derived_view;
      rms = rms_of(*reference, spec.elements());
      if (!std::isfinite(rms)) return wrong_verdict(c, "the run's y is not finite");
    }
    if (!std::isfinite(rms)) return wrong_verdict(c, "the judge's '" + spec.name + "' is not finite");
    const Tolerance tolerance = tolerance_for(spec, c.dtype, c.mode, c.peer, rms);
    const int64_t count = spec.elements();
    const Difference d = in_chunks<Difference>(count, [&](int64_t begin, int64_t end) {
      return quick_difference_of(tolerance, spec.dtype, got[i], *reference, begin, end);
    });
    const double norm = std::sqrt(d.squares / static_cast<double>(count));
    std::ostringstream text;
    text.precision(9);
    if (!(d.wrong <= tolerance.outliers)) {
      text << "'" << spec.name << "': " << d.wrong << " of " << count << " elements are wrong, the first at "
           << coordinate(spec.shape, d.first) << " got " << got[i].value(d.first) << ", wanted "
           << reference->value(d.first) << "; the worst at " << coordinate(spec.shape, d.worst) << " got "
           << got[i].value(d.worst) << ", wanted " << reference->value(d.worst);
      if (tolerance.bit_equal) {
        text << " (to the bit)";
        return wrong_verdict(c, text.str());
      }
      const double wanted = reference->value(d.worst);
      const double bound = tolerance.absolute + tolerance.relative * std::abs(wanted);
      text << " within " << bound;
      Verdict verdict = wrong_verdict(c, text.str());
      const double error = std::abs(got[i].value(d.worst) - wanted);
      if (std::isfinite(error)) verdict.excess = error / bound;
      return verdict;
    }
    if (!tolerance.bit_equal && !(norm <= tolerance.norm)) {
      text << "'" << spec.name << "': root-mean-square error " << norm << ", allowed " << tolerance.norm
           << " (of " << rms << ")";
      return wrong_verdict(c, text.str());
    }
  }
  return {};
}

}  // namespace kiln
