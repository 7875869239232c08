// Every implementation of the ops in KILN_TEST_OPS ("relu,add") on every problem of the test suite that it supports.
// Cases are named <op>_<pass>.<implementation>/<dtype>/<problem>; filter with --gtest_filter='conv2d_fwd.naive/bf16/*'.
#include <gtest/gtest.h>

#include "tests/support/runner.h"
#include "tests/support/shapes.h"

namespace kiln {
namespace {

class OpCase : public ::testing::Test {
 public:
  explicit OpCase(const ImplCase& impl_case) : case_(impl_case) {}

  void TestBody() override {
    if (case_.device == DeviceKind::kCuda && !cuda_available()) {
      GTEST_SKIP() << "needs a GPU: " << cuda_unavailable_reason();
    }
    const Device& device = case_.device == DeviceKind::kCuda ? cuda_device() : cpu_device();
    const Support support =
        case_.pass->supports(case_.pass->parse(case_.problem.text, case_.dtype), device, case_.impl.name);
    if (!support) GTEST_SKIP() << "not on " << device.name << ": " << support.rule();
    const Verdict verdict = check({.pass = case_.pass,
                                   .problem = case_.problem.text,
                                   .dtype = case_.dtype,
                                   .device = &device,
                                   .impl = case_.impl.name,
                                   .peer = case_.impl.peer});
    EXPECT_TRUE(verdict.ok) << case_.problem.label << "\n" << verdict.message;
  }

 private:
  ImplCase case_;
};

std::vector<std::string> ops_of_this_program() {
  std::vector<std::string> ops;
  const std::string text = KILN_TEST_OPS;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    ops.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return ops;
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (const kiln::ImplCase& c : kiln::test_cases(kiln::ops_of_this_program())) {
    ::testing::RegisterTest(c.pass->row_prefix().c_str(), c.name().c_str(), nullptr, nullptr, __FILE__, __LINE__,
                            [c]() -> kiln::OpCase* { return new kiln::OpCase(c); });
  }
  return RUN_ALL_TESTS();
}
