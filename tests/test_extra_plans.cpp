// What a plan owns survives its launches (block counters, where blocks meet), and must not show: one plan,
// launched on changing data, beside another plan that is given the same workspace, makes the bits that a
// fresh plan makes.
#include <gtest/gtest.h>

#include "harness/execute.h"
#include "kernels/common/error.h"
#include "tests/support/device_test.h"
#include "tests/support/fill.h"

namespace kiln {
namespace {

struct PlanCase {
  const char *pass, *problem;
};

// One problem at least of each pass some of whose implementations keep words between launches, and of the
// same words by different configs.
constexpr PlanCase kCases[] = {
    {"batchnorm.fwd_train", "n9_h16_w16_c136_relu"}, {"batchnorm.fwd_train", "n2_h7_w9_c512"},
    {"batchnorm.bwd", "n9_h16_w16_c136_relu"},       {"batchnorm.bwd", "n5_h13_w11_c256_res_relu6"},
    {"conv2d.fwd", "n2_h8_w8_c64_k64_r3"},           {"conv2d.wgrad", "n4_h8_w8_c64_k64_r3"},
    {"conv2d.wgrad", "n4_h8_w8_c64_k64_r1"},         {"depthwise_conv2d.wgrad", "n4_h8_w8_c64_r3"},
    {"softmax_xent.fwd_bwd", "n2000_c10"},
};

class Plans : public DeviceTest {
 protected:
  static bool same(const HostTensors& a, const HostTensors& b) {
    bool equal = a.size() == b.size();
    for (size_t i = 0; equal && i < a.size(); ++i) equal = a[i].data == b[i].data;
    return equal;
  }

  // Launches on one set of buffers; the workspace is whatever the launch before has left.
  HostTensors launch(const PassInfo& pass, const AnyProblem& problem, const AnyPlan& plan,
                     const HostTensors& inputs, void* workspace) const {
    TensorBuffers buffers(pass.tensors(problem), GetParam());
    buffers.upload(inputs);
    const OwnedStream stream(GetParam());
    const Bound bound = plan.bind(buffers.pointers(), workspace);
    bound.launch(stream.get());
    stream.synchronize();
    return buffers.download();
  }

  void check(const PassInfo& pass, const PlanCase& plan_case, DType dtype) const {
    const AnyProblem problem = pass.parse(plan_case.problem, dtype);
    HostTensors inputs[2];
    for (size_t i = 0; i < 2; ++i)
      inputs[i] = make_inputs(pass, plan_case.problem, dtype, i + 1, FillMode::kReal);
    for (const std::string& choice : pass.choices(problem, device())) {
      const HostTensors want[2] = {execute(pass, problem, device(), choice, inputs[0]),
                                   execute(pass, problem, device(), choice, inputs[1])};
      const AnyPlan plan = pass.plan(problem, device(), choice), other = pass.plan(problem, device(), choice);
      const DeviceMemory workspace(GetParam(), plan.workspace_bytes);
      void* shared = workspace.bytes() ? workspace.data() : nullptr;
      for (const size_t i : {0, 1, 0, 1, 1, 0}) {
        EXPECT_TRUE(same(launch(pass, problem, plan, inputs[i], shared), want[i]))
            << plan_case.pass << " " << plan_case.problem << " " << name_of(dtype) << " " << choice
            << ", inputs " << i;
        EXPECT_TRUE(same(launch(pass, problem, other, inputs[1 - i], shared), want[1 - i]))
            << plan_case.pass << " " << plan_case.problem << " " << name_of(dtype) << " " << choice
            << ", the other plan, inputs " << 1 - i;
      }
    }
  }
};

TEST_P(Plans, GiveTheSameBitsLaunchAfterLaunch) {
  for (const PlanCase& plan_case : kCases) {
    const PassInfo* pass = built_pass(plan_case.pass);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      if (!pass || (GetParam() == DeviceKind::kCpu && dtype == DType::kBF16)) continue;
      check(*pass, plan_case, dtype);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, Plans, all_device_kinds(), device_kind_name);

}  // namespace
}  // namespace kiln
