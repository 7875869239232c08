#include "tests/support/fill.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "harness/execute.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

constexpr double kExactFp32 = 16777216.0;  // 2^24: integers up to here are exact

// Calls store(i, bits) for i in [0, count), four elements a Philox draw; `tensor` keeps a case's tensors
// apart.
template <class Store>
void draw_each(uint64_t seed, size_t tensor, int64_t count, const Store& store) {
#pragma omp parallel for schedule(static) if (count > 65536)
  for (int64_t block = 0; block < (count + 3) / 4; ++block) {
    const Philox4 draw =
        philox(seed, PhiloxStream::kTest, static_cast<uint64_t>(block), static_cast<uint32_t>(tensor));
    for (int64_t i = 4 * block; i < std::min(count, 4 * block + 4); ++i) store(i, draw.v[i & 3]);
  }
}

// Two normal values of two uniform ones (Box and Muller).
void fill_normal(uint64_t seed, size_t tensor, float* values, int64_t count) {
#pragma omp parallel for schedule(static) if (count > 65536)
  for (int64_t block = 0; block < (count + 3) / 4; ++block) {
    const Philox4 draw =
        philox(seed, PhiloxStream::kTest, static_cast<uint64_t>(block), static_cast<uint32_t>(tensor));
    float normal[4];
    for (int j = 0; j < 4; j += 2) {
      const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform01(draw.v[j])));
      const float angle = 6.28318530718f * uniform01(draw.v[j + 1]);
      normal[j] = radius * std::cos(angle);
      normal[j + 1] = radius * std::sin(angle);
    }
    for (int64_t i = 4 * block; i < std::min(count, 4 * block + 4); ++i) values[i] = normal[i & 3];
  }
}

void fill_one(HostTensor& tensor, size_t index, uint64_t seed, FillMode mode, int limit) {
  const TensorSpec& spec = tensor.spec;
  const int64_t count = spec.elements();
  const bool exact = mode == FillMode::kExact;
  switch (spec.fill) {
    case Fill::kReal: {
      float* values = tensor.as<float>();
      if (!exact) return fill_normal(seed, index, values, count);
      const uint32_t range = static_cast<uint32_t>(2 * limit + 1);
      return draw_each(seed, index, count, [=](int64_t i, uint32_t bits) {
        values[i] = static_cast<float>(static_cast<int>(uniform_below(bits, range)) - limit);
      });
    }
    case Fill::kWide: {
      float* values = tensor.as<float>();
      if (exact) {
        return draw_each(seed, index, count, [=](int64_t i, uint32_t bits) {
          values[i] = static_cast<float>(static_cast<int>(uniform_below(bits, 19)) - 9);
        });
      }
      fill_normal(seed, index, values, count);
#pragma omp parallel for schedule(static) if (count > 65536)
      for (int64_t i = 0; i < count; ++i) values[i] *= 4;
      return;
    }
    case Fill::kPositive: {
      float* values = tensor.as<float>();
      return draw_each(seed, index, count, [=](int64_t i, uint32_t bits) {
        values[i] = exact ? 1.0f + static_cast<float>(bits >> 31) : 0.5f + uniform01(bits);
      });
    }
    case Fill::kLabels: {
      int32_t* values = tensor.as<int32_t>();
      const uint32_t classes = static_cast<uint32_t>(spec.limit);
      return draw_each(seed, index, count, [=](int64_t i, uint32_t bits) {
        values[i] = static_cast<int32_t>(uniform_below(bits, classes));
      });
    }
    case Fill::kBytes: {
      unsigned char* values = tensor.data.data();
      return draw_each(seed, index, count,
                       [=](int64_t i, uint32_t bits) { values[i] = static_cast<unsigned char>(bits >> 24); });
    }
    case Fill::kDerived:
      return;
  }
}

}  // namespace

const char* name_of(FillMode mode) { return mode == FillMode::kExact ? "exact" : "real"; }

int exact_limit(double terms) {
  for (int limit = 3; limit >= 1; --limit) {
    // + 2 * limit: a bias or an accumulated output.
    if (terms * limit * limit + 2 * limit < kExactFp32) return limit;
  }
  fail_usage("a sum of " + std::to_string(terms) + " terms is too long for exact data: integers beyond 2^24");
}

HostTensors make_inputs(const PassInfo& pass, std::string_view problem, DType dtype, uint64_t seed,
                        FillMode mode) {
  const AnyProblem wide = pass.parse(problem, DType::kF32);
  const std::vector<TensorSpec> stored = pass.tensors(pass.parse(problem, dtype));
  int limit = 3;
  for (const TensorSpec& spec : stored) {
    if (mode == FillMode::kExact && spec.is_output() && spec.check == Check::kSum) {
      limit = std::min(limit, exact_limit(spec.terms));
    }
    // Sums that bf16 holds too: a rounded one might be another's equal.
    if (mode == FillMode::kExact && spec.is_output() && spec.check == Check::kPosition) limit = 1;
  }
  HostTensors tensors;
  for (const TensorSpec& spec : pass.tensors(wide)) {
    TensorSpec held = spec;
    if (!spec.is_input()) held.role = Role::kAbsent;  // outputs need no memory here
    tensors.emplace_back(held).spec.role = spec.role;
  }
  const auto round_input = [&](size_t i) {
    if (tensors[i].spec.is_input() && tensors[i].spec.dtype == DType::kF32) {
      round_values(stored[i].dtype, tensors[i].as<float>(), tensors[i].spec.elements());
    }
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].spec.is_input()) continue;
    fill_one(tensors[i], i, seed, mode, limit);
    if (tensors[i].spec.fill != Fill::kDerived) round_input(i);
  }
  pass.derive(wide, tensors);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].spec.fill == Fill::kDerived) round_input(i);
  }
  return tensors;
}

}  // namespace kiln
