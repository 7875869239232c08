#include "tests/support/runner.h"

#include <cmath>
#include <cstring>
#include <list>
#include <optional>
#include <sstream>

#include "kernels/common/error.h"
#include "tests/support/tolerance.h"

namespace kiln {
namespace {

constexpr size_t kCacheBytes = size_t{1} << 29;

size_t bytes_of(const HostTensors& tensors) {
  size_t sum = 0;
  for (const HostTensor& t : tensors) sum += t.data.size();
  return sum;
}

std::shared_ptr<const Reference> compute_reference(const Case& c) {
  auto reference = std::make_shared<Reference>();
  reference->inputs = make_inputs(*c.pass, c.problem, c.dtype, c.seed, c.mode);
  const AnyProblem wide = c.pass->parse(c.problem, DType::kF32);
  double bytes = 0;
  for (const TensorSpec& spec : c.pass->tensors(wide)) bytes += static_cast<double>(spec.bytes());
  const bool small = c.pass->flops(wide) < kCpuJudgeFlops && bytes < kCpuJudgeBytes;
  reference->outputs = small || !cuda_available()
                           ? execute(*c.pass, wide, cpu_device(), "cpu_naive", reference->inputs)
                           : execute(*c.pass, wide, cuda_device(), "naive", reference->inputs);
  return reference;
}

// The value of element i as a double, whatever the type in host memory.
double value_at(const HostTensor& tensor, int64_t i) {
  switch (tensor.spec.dtype) {
    case DType::kU8:
      return tensor.data[static_cast<size_t>(i)];
    case DType::kI32:
      return tensor.as<int32_t>()[i];
    default:
      return tensor.as<float>()[i];
  }
}

// Derived values are not small integers even in exact mode.
bool has_narrow_derived(const Case& c) {
  for (const TensorSpec& spec : c.pass->tensors(c.pass->parse(c.problem, c.dtype))) {
    if (spec.is_input() && spec.fill == Fill::kDerived && spec.dtype == DType::kBF16) return true;
  }
  return false;
}

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

Difference difference_of(const Tolerance& tolerance, DType stored, const HostTensor& got,
                         const HostTensor& want, int64_t begin, int64_t end) {
  Difference d;
  for (int64_t i = begin; i < end; ++i) {
    const double g = value_at(got, i), w = value_at(want, i);
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

// Calls body(begin, end) over chunks of [0, count) in parallel and merges the results in order.
template <class Part, class Body>
Part in_chunks(int64_t count, const Body& body) {
  constexpr int64_t kChunk = 1 << 18;
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<Part> parts(static_cast<size_t>(chunks));
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t i = 0; i < chunks; ++i) parts[i] = body(i * kChunk, std::min(count, (i + 1) * kChunk));
  Part sum{};
  for (const Part& part : parts) sum.merge(part);
  return sum;
}

struct Sum {
  double value = 0;
  void merge(const Sum& next) { value += next.value; }
};

double rms_of(const HostTensor& tensor) {
  const int64_t count = tensor.spec.elements();
  const Sum squares = in_chunks<Sum>(count, [&](int64_t begin, int64_t end) {
    Sum sum;
    for (int64_t i = begin; i < end; ++i) sum.value += value_at(tensor, i) * value_at(tensor, i);
    return sum;
  });
  return std::sqrt(squares.value / static_cast<double>(count));
}

std::string describe(const Case& c) {
  return c.row() + " on " + (c.device ? c.device->name : "?") + ", seed " + std::to_string(c.seed) + ", " +
         name_of(c.mode) + " data";
}

Verdict wrong(const Case& c, const std::string& what) {
  return {false, describe(c) + ": " + what + "\n  repeat: " + c.repeat()};
}

// The output that a reduced-precision copy is rounded from: the fp32 problem has no such tensor to judge it
// by.
const HostTensor* original_of(const TensorSpec& spec, const std::vector<TensorSpec>& specs,
                              const HostTensors& got) {
  if (spec.name != "copy") return nullptr;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == "param") return &got[i];
  }
  return nullptr;
}

// What a Check::kMask output must be: where the same run's "y" lies inside.
HostTensor mask_of(const TensorSpec& spec, const std::vector<TensorSpec>& specs, const HostTensors& got) {
  HostTensor mask(spec);
  size_t y = 0;
  while (specs[y].name != "y") ++y;
  const int64_t channels = specs[y].shape.back(), row = spec.shape.back();
  const int64_t pixels = specs[y].elements() / channels;
#pragma omp parallel for schedule(static) if (specs[y].elements() > 65536)
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) {
      const double value = value_at(got[y], pixel * channels + c);
      const bool inside = value > 0 && (spec.limit == 0 || value < static_cast<double>(spec.limit));
      mask.data[static_cast<size_t>(pixel * row + c / 8)] |= static_cast<unsigned char>(inside << c % 8);
    }
  }
  return mask;
}

}  // namespace

std::string Case::row() const {
  return pass->row_prefix() + "/" + problem + "/" + name_of(dtype) + "/" + impl;
}

std::string Case::repeat() const {
  const std::string name = impl + "/" + name_of(dtype) + "/" + problem;
  std::string text = "ctest runs it as --gtest_filter='" + pass->row_prefix() + "." + name + "'; kiln op " +
                     pass->id() + " --problem " + problem + " --impl " + impl + " --dtype " + name_of(dtype) +
                     " --device " + (device && device->is_cuda() ? "cuda" : "cpu") + " --in";
  const std::vector<TensorSpec> specs = pass->tensors(pass->parse(problem, dtype));
  for (const TensorSpec& spec : specs) text += spec.is_input() ? " " + spec.name + ".npy" : "";
  text += " --out";
  for (const TensorSpec& spec : specs) text += spec.is_output() ? " " + spec.name + ".npy" : "";
  return text;
}

std::shared_ptr<const Reference> judge(const Case& c) {
  static std::list<std::pair<std::string, std::shared_ptr<const Reference>>> cache;  // newest first
  const bool rounded = c.dtype == DType::kBF16 && (c.mode == FillMode::kReal || has_narrow_derived(c));
  const std::string key = c.pass->id() + "/" + c.problem + "/" + name_of(c.mode) +
                          (rounded ? "/rounded/" : "/") + std::to_string(c.seed);
  for (auto it = cache.begin(); it != cache.end(); ++it) {
    if (it->first != key) continue;
    cache.splice(cache.begin(), cache, it);
    return cache.front().second;
  }
  size_t held = 0;
  for (auto it = cache.begin(); it != cache.end();) {
    held += bytes_of(it->second->inputs) + bytes_of(it->second->outputs);
    it = held > kCacheBytes ? cache.erase(it) : std::next(it);
  }
  cache.emplace_front(key, compute_reference(c));
  return cache.front().second;
}

HostTensors run(const Case& c, const HostTensors& inputs, unsigned char garbage) {
  return execute(
      *c.pass, c.pass->parse(c.problem, c.dtype), *c.device, c.impl, inputs,
      {.guard_bytes = c.undefined ? 0 : kGuardBytes, .workspace_fill = garbage, .undefined = c.undefined});
}

Verdict compare_tensors(const Case& c, const std::vector<TensorSpec>& specs, const HostTensors& got,
                        const HostTensors& want) {
  for (size_t i = 0; i < specs.size(); ++i) {
    TensorSpec spec = specs[i];
    if (!spec.is_output()) continue;
    const HostTensor* reference = &want[i];
    if (reference->spec.role == Role::kAbsent) {
      reference = original_of(spec, specs, got);
      if (!reference) return wrong(c, "output '" + spec.name + "' has no judge");
      spec.check = Check::kExact;
    }
    std::optional<HostTensor> mask;
    if (spec.check == Check::kMask) reference = &mask.emplace(mask_of(spec, specs, got));
    const double rms = rms_of(*reference);
    if (!std::isfinite(rms)) return wrong(c, "the judge's '" + spec.name + "' is not finite");
    const Tolerance tolerance = tolerance_for(spec, c.dtype, c.mode, c.peer, rms);
    const int64_t count = spec.elements();
    const Difference d = in_chunks<Difference>(count, [&](int64_t begin, int64_t end) {
      return difference_of(tolerance, spec.dtype, got[i], *reference, begin, end);
    });
    const double norm = std::sqrt(d.squares / static_cast<double>(count));
    std::ostringstream text;
    text.precision(9);
    if (!(d.wrong <= tolerance.outliers)) {
      text << "'" << spec.name << "': " << d.wrong << " of " << count << " elements are wrong, the first at "
           << coordinate(spec.shape, d.first) << " got " << value_at(got[i], d.first) << ", wanted "
           << value_at(*reference, d.first) << "; the worst at " << coordinate(spec.shape, d.worst) << " got "
           << value_at(got[i], d.worst) << ", wanted " << value_at(*reference, d.worst);
      if (tolerance.bit_equal) {
        text << " (to the bit)";
        return wrong(c, text.str());
      }
      const double wanted = value_at(*reference, d.worst);
      const double bound = tolerance.absolute + tolerance.relative * std::abs(wanted);
      text << " within " << bound;
      Verdict verdict = wrong(c, text.str());
      const double error = std::abs(value_at(got[i], d.worst) - wanted);
      if (std::isfinite(error)) verdict.excess = error / bound;
      return verdict;
    }
    if (!tolerance.bit_equal && !(norm <= tolerance.norm)) {
      text << "'" << spec.name << "': root-mean-square error " << norm << ", allowed " << tolerance.norm
           << " (of " << rms << ")";
      return wrong(c, text.str());
    }
  }
  return {};
}

Verdict compare(const Case& c, const HostTensors& got, const HostTensors& want) {
  return compare_tensors(c, c.pass->tensors(c.pass->parse(c.problem, c.dtype)), got, want);
}

Verdict check(Case c) {
  try {
    bool exact = false;
    for (const TensorSpec& spec : c.pass->tensors(c.pass->parse(c.problem, c.dtype))) {
      exact = exact || (spec.is_output() && spec.check != Check::kReal);
    }
    for (const FillMode mode : {FillMode::kExact, FillMode::kReal}) {
      if (mode == FillMode::kExact && !exact) continue;
      c.mode = mode;
      const std::shared_ptr<const Reference> reference = judge(c);
      const HostTensors got = run(c, reference->inputs, 0xff);
      const Verdict verdict = compare(c, got, reference->outputs);
      if (!verdict.ok) return verdict;
      if (mode != FillMode::kReal || c.peer) continue;
      const HostTensors again = run(c, reference->inputs, 0x3f);
      for (size_t i = 0; i < got.size(); ++i) {
        if (got[i].data != again[i].data) {
          return wrong(c, "'" + got[i].spec.name + "' differs between two runs on the same inputs");
        }
      }
    }
    return {};
  } catch (const Error& error) {
    return wrong(c, error.what());
  }
}

}  // namespace kiln
