// Properties of every implementation on random problems. KILN_PROPERTY_CASES (3000) cases are shared out over
// the properties, on the CPU and, where there is one, on the GPU; they are named
// <op>_<property>.<device>/<dtype>/seed<s>, so that one is repeated with
// --gtest_filter='conv2d_adjoint.cuda/bf16/seed17' (and KILN_PROPERTY_CASES where the seed is beyond the
// default's).
#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/common/error.h"
#include "tests/support/properties.h"
#include "tests/support/random_problems.h"

namespace kiln {
namespace {

constexpr size_t kGuards = 256;

HostTensors run_for_real(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                         std::string_view impl, const HostTensors& inputs) {
  return execute(pass, problem, device, impl, inputs, {.guard_bytes = kGuards, .workspace_fill = 0xff});
}

std::string missing_pass(const Property& property) {
  for (const std::string& pass : property.passes) {
    const std::string id = property.op + "." + pass;
    if (!built_pass(id)) return id;
  }
  return "";
}

class PropertyCase : public ::testing::Test {
 public:
  PropertyCase(Property property, DeviceKind device, DType dtype, uint64_t seed)
      : property_(std::move(property)), device_(device), dtype_(dtype), seed_(seed) {}

  void TestBody() override {
    const std::string missing = missing_pass(property_);
    if (!missing.empty()) GTEST_SKIP() << missing << " is not in this build";
    if (device_ == DeviceKind::kCuda && !cuda_available()) {
      GTEST_SKIP() << "needs a GPU: " << cuda_unavailable_reason();
    }
    const Device& device = device_ == DeviceKind::kCuda ? cuda_device() : cpu_device();
    try {
      EXPECT_EQ(property_.check({property_.op, seed_, dtype_, &device, run_for_real}), "");
    } catch (const Error& error) {
      FAIL() << error.what();
    }
  }

 private:
  Property property_;
  DeviceKind device_;
  DType dtype_;
  uint64_t seed_;
};

std::vector<Property> all_properties() {
  std::vector<Property> list = product_properties();
  for (Property& property : layer_properties()) list.push_back(std::move(property));
  for (Property& property : update_properties()) list.push_back(std::move(property));
  return list;
}

int wanted_cases() {
  const char* text = std::getenv("KILN_PROPERTY_CASES");
  if (!text || !*text) return 3000;
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  if (*end || count < 1 || count > 10000000) {
    fail_usage(std::string("KILN_PROPERTY_CASES: '") + text + "' is not a number from 1 to 10000000");
  }
  return static_cast<int>(count);
}

// fp32 where the op does not take the dtype.
DType taken_dtype(const Property& property, DType wanted) {
  if (!missing_pass(property).empty()) return wanted;
  try {
    find_pass(property.op + "." + property.passes[0]).parse(random_problem(property.op, 1), wanted);
    return wanted;
  } catch (const Error&) {
    return DType::kF32;
  }
}

void register_case(const Property& property, DeviceKind device, DType dtype, uint64_t seed) {
  const std::string suite = property.op + "_" + property.name;
  const std::string name = std::string(device == DeviceKind::kCpu ? "cpu" : "cuda") + "/" + name_of(dtype) +
                           "/seed" + std::to_string(seed);
  ::testing::RegisterTest(suite.c_str(), name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [=]() -> PropertyCase* { return new PropertyCase(property, device, dtype, seed); });
}

// Half of the cases run on the CPU in fp32, half on the GPU in bf16 and fp32 in turn; a seed is one random
// problem.
void register_cases() {
  const std::vector<Property> properties = all_properties();
  int weights = 0;
  for (const Property& property : properties) weights += property.weight;
  const int cases = wanted_cases();
  for (const Property& property : properties) {
    const DType narrow = taken_dtype(property, DType::kBF16);
    const int share = std::max(2, (cases * property.weight + weights - 1) / weights);
    for (int i = 0; i < share; ++i) {
      const auto seed = static_cast<uint64_t>(i / 2 + 1);
      if (i % 2 == 0) {
        register_case(property, DeviceKind::kCpu, DType::kF32, seed);
      } else {
        // A third in fp32, whose kernels are the simpler ones.
        register_case(property, DeviceKind::kCuda, i / 2 % 3 == 2 ? DType::kF32 : narrow, seed);
      }
    }
  }
}

// --- the properties can fail: an implementation that is wrong breaks every one of them
// -------------------------

using Fault = void (*)(HostTensors&);

// Adds something that depends on the place to every output, so that nothing cancels.
void disturb(HostTensors& outputs) {
  for (HostTensor& tensor : outputs) {
    if (!tensor.spec.is_output() || tensor.spec.dtype != DType::kF32) continue;
    float* values = tensor.as<float>();
    for (int64_t i = 0; i < tensor.spec.elements(); ++i) values[i] += static_cast<float>(1 + i % 3);
  }
}

// One element of the largest output.
void disturb_one(HostTensors& outputs) {
  HostTensor* largest = nullptr;
  for (HostTensor& tensor : outputs) {
    if (!tensor.spec.is_output() || tensor.spec.dtype != DType::kF32) continue;
    if (!largest || tensor.spec.elements() > largest->spec.elements()) largest = &tensor;
  }
  if (largest) largest->as<float>()[largest->spec.elements() / 2] += 1;
}

int seeds_that_notice(const Property& property, Fault fault, int seeds) {
  int noticed = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    int calls = 0;
    const RunImpl broken = [&](const PassInfo& pass, const AnyProblem& problem, const Device& device,
                               std::string_view impl, const HostTensors& inputs) {
      HostTensors outputs = run_for_real(pass, problem, device, impl, inputs);
      if (calls++ == 0) fault(outputs);  // one run alone is wrong
      return outputs;
    };
    noticed += !property.check({property.op, static_cast<uint64_t>(seed), DType::kF32, &cpu_device(), broken})
                    .empty();
  }
  return noticed;
}

class PropertiesCanFail : public ::testing::TestWithParam<int> {};

TEST_P(PropertiesCanFail, OfAWrongImplementation) {
  const Property property = all_properties()[static_cast<size_t>(GetParam())];
  if (!missing_pass(property).empty()) GTEST_SKIP() << missing_pass(property) << " is not in this build";
  EXPECT_GE(seeds_that_notice(property, disturb, 8), 6) << property.op << " " << property.name;
}

TEST_P(PropertiesCanFail, OfOneWrongElement) {
  const Property property = all_properties()[static_cast<size_t>(GetParam())];
  if (!missing_pass(property).empty()) GTEST_SKIP() << missing_pass(property) << " is not in this build";
  EXPECT_GE(seeds_that_notice(property, disturb_one, 8), 3) << property.op << " " << property.name;
}

INSTANTIATE_TEST_SUITE_P(Every, PropertiesCanFail,
                         ::testing::Range(0, static_cast<int>(all_properties().size())));

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  kiln::register_cases();
  return RUN_ALL_TESTS();
}
