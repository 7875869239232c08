// Problems so large that a GPU's blocks loop: over several tiles each, over the whole depth of a product,
// over the grid's stride. The other tests' problems are small enough for the CPU's judge, and there many
// loops run once. Beyond kCpuJudgeFlops CUDA's naive is the judge, which those tests hold against the CPU's.
#include <gtest/gtest.h>

#include "kernels/common/error.h"
#include "tests/support/runner.h"

namespace kiln {
namespace {

struct LargeProblem {
  const char* op;
  const char* text;
};

// For 132 multiprocessors; of each kind one with tails.
const LargeProblem kProblems[] = {{"conv2d", "n300_h16_w16_c64_k64_r3"},
                                  {"conv2d", "n600_h16_w16_c64_k128_r3"},
                                  {"conv2d", "n1200_h8_w8_c128_k192_r3"},
                                  {"conv2d", "n333_h15_w13_c72_k56_r3"},
                                  {"conv2d", "n300_h31_w31_c24_k64_r3"},
                                  {"conv2d", "n333_h15_w15_c64_k136_r3"},
                                  {"conv2d", "n300_h16_w16_c64_k128_r1_st2"},
                                  {"conv2d", "n300_h32_w32_c24_k144_r1"},
                                  {"conv2d", "n300_h16_w16_c64_k120_r1"},
                                  {"conv2d", "n401_h15_w15_c144_k24_r1_acc"},
                                  {"conv2d", "n512_h8_w8_c64_k384_r1_acc"},
                                  {"conv2d", "n512_h4_w4_c160_k960_r1_acc"},
                                  {"conv2d", "n512_h4_w4_c960_k160_r1_bias"},
                                  {"conv2d", "n512_h4_w4_c960_k320_r1"},
                                  {"conv2d", "n66_h4_w4_c520_k1032_r1"},
                                  {"depthwise_conv2d", "n256_h32_w32_c64_r3"},
                                  {"depthwise_conv2d", "n400_h15_w17_c90_r5_st2_bias"},
                                  {"linear", "n1024_c1536_k200_bias"},
                                  {"linear", "n2047_c1021_k117"},
                                  {"batchnorm", "n256_h32_w32_c64_relu"},
                                  {"batchnorm", "n301_h15_w15_c117"},
                                  {"max_pool2d", "n256_h32_w32_c64_r2_st2_p0_arg8"},
                                  {"max_pool2d", "n301_h15_w15_c117_r3_st2_p1_arg8"},
                                  {"avg_pool2d", "n301_h15_w15_c117_r3_st2_p1"},
                                  {"global_avg_pool", "n2001_h5_w5_c301"},
                                  {"global_max_pool", "n2001_h5_w5_c301_arg32"},
                                  {"softmax_xent", "n20001_c10_ls0.1"},
                                  {"softmax_xent", "n9001_c130_ls0.1"},
                                  {"relu", "n301_h31_w31_c17"},
                                  {"add", "n301_h31_w31_c17"},
                                  {"augment", "n700_h32_w32_c3_m1500_pad4_flip_cut8"},
                                  {"sgd", "n3000001_d2000000_m0.9_wd0.0005_nesterov"},
                                  {"adamw", "n3000001_d2000000_wd0.01"},
                                  {"grad_norm", "n5000003"}};

class Large : public ::testing::TestWithParam<LargeProblem> {};

TEST_P(Large, EveryImplementation) {
  if (!cuda_available()) GTEST_SKIP() << "needs a GPU: " << cuda_unavailable_reason();
  bool found = false;
  for (const PassInfo& pass : all_passes()) {
    if (pass.op != GetParam().op) continue;
    found = true;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      AnyProblem problem;
      try {
        problem = pass.parse(GetParam().text, dtype);
      } catch (const Error&) {
        if (dtype == DType::kF32) throw;
        continue;  // gradient norms are fp32 alone
      }
      for (const ImplInfo& impl : pass.impls(DeviceKind::kCuda)) {
        if (impl.peer || impl.name == "naive" || !pass.supports(problem, cuda_device(), impl.name)) continue;
        const Verdict verdict = check({.pass = &pass,
                                       .problem = problem.text,
                                       .dtype = dtype,
                                       .device = &cuda_device(),
                                       .impl = impl.name});
        EXPECT_TRUE(verdict.ok) << verdict.message;
      }
    }
  }
  if (!found) GTEST_SKIP() << GetParam().op << " is not in this build";
}

INSTANTIATE_TEST_SUITE_P(On, Large, ::testing::ValuesIn(kProblems), [](const auto& info) {
  std::string name = std::string(info.param.op) + "_" + info.param.text;
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
});

}  // namespace
}  // namespace kiln
