// What the tests of the judge share: running cpu_naive on values, and central differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "harness/execute.h"
#include "kernels/common/philox.h"

namespace kiln {

using Values = std::vector<double>;

#define REQUIRE_PASS(id) \
  if (!built_pass(id)) GTEST_SKIP() << id << " is not in this build"

// Runs cpu_naive on inputs given in order of the Args (absent ones left out); returns the outputs by name.
inline std::map<std::string, Values> naive(const std::string& id, const std::string& problem_text,
                                           const std::vector<Values>& inputs) {
  const PassInfo& pass = find_pass(id);
  const AnyProblem problem = pass.parse(problem_text, DType::kF32);
  HostTensors tensors;
  size_t next = 0;
  for (const TensorSpec& spec : pass.tensors(problem)) {
    HostTensor& tensor = tensors.emplace_back(spec);
    if (!spec.is_input()) continue;
    const Values& values = inputs.at(next++);
    EXPECT_EQ(static_cast<int64_t>(values.size()), spec.elements()) << id << " " << spec.name;
    for (size_t i = 0; i < values.size(); ++i) {
      if (spec.dtype == DType::kI32) {
        tensor.as<int32_t>()[i] = static_cast<int32_t>(values[i]);
      } else if (spec.dtype == DType::kU8) {
        tensor.data[i] = static_cast<unsigned char>(values[i]);
      } else {
        tensor.as<float>()[i] = static_cast<float>(values[i]);
      }
    }
  }
  std::map<std::string, Values> outputs;
  for (const HostTensor& tensor : execute(pass, problem, cpu_device(), "cpu_naive", tensors)) {
    if (!tensor.spec.is_output()) continue;
    Values& values = outputs[tensor.spec.name];
    for (int64_t i = 0; i < tensor.spec.elements(); ++i) {
      values.push_back(tensor.spec.dtype == DType::kI32  ? tensor.as<int32_t>()[i]
                       : tensor.spec.dtype == DType::kU8 ? tensor.data[static_cast<size_t>(i)]
                                                         : tensor.as<float>()[i]);
    }
  }
  return outputs;
}

// fp32-representable values: the judge and the double forward see the same.
inline Values random_values(size_t count, uint64_t seed, bool positive = false) {
  Values values(count);
  for (size_t i = 0; i < count; ++i) {
    const Philox4 draw = philox(seed, PhiloxStream::kTest, i);
    const float value = positive ? 0.5f + uniform01(draw.v[0]) : 4.0f * uniform01(draw.v[0]) - 2.0f;
    values[i] = value;
  }
  return values;
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline void expect_near(const Values& got, const Values& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(got[i] - want[i]), tolerance * std::max(1.0, std::abs(want[i])))
        << what << " at " << i << ": got " << got[i] << ", wanted " << want[i];
  }
}

// d <dy, f(x)> / dx by central differences.
inline Values gradient(const std::function<Values(const Values&)>& f, Values x, const Values& dy,
                       double step) {
  Values dx(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + step;
    const double above = dot(dy, f(x));
    x[i] = kept - step;
    dx[i] = (above - dot(dy, f(x))) / (2 * step);
    x[i] = kept;
  }
  return dx;
}

}  // namespace kiln
