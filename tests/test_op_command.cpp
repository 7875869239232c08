// `kiln op`: files in, files out, and its errors.
#include "harness/op_command.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "harness/npy.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

class OpCommandTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "kiln_op_" + std::to_string(::getpid()) + "/";
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string put(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
    NpyArray array{std::move(shape), DType::kF32, {}};
    array.data.resize(values.size() * sizeof(float));
    std::memcpy(array.data.data(), values.data(), array.data.size());
    write_npy(folder_ + name, array);
    return folder_ + name;
  }
  std::vector<float> get(const std::string& name, const std::vector<int64_t>& shape) {
    const NpyArray array = read_npy(folder_ + name);
    EXPECT_EQ(array.shape, shape);
    EXPECT_EQ(array.dtype, DType::kF32);
    std::vector<float> values(array.data.size() / sizeof(float));
    std::memcpy(values.data(), array.data.data(), array.data.size());
    return values;
  }
  std::string error(const OpCommand& command) {
    try {
      run_op_command(command);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string folder_;
};

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST_F(OpCommandTest, RunsAPass) {
  if (!built_pass("conv2d.fwd")) GTEST_SKIP() << "conv2d is not in this build";
  const std::string x = put("x.npy", {1, 3, 3, 1}, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  const std::string w = put("w.npy", {1, 2, 2, 1}, {1, 0, 0, 1});
  for (const char* impl : {"", "cpu_naive", "cpu_fast"}) {
    EXPECT_EQ(run_op_command({.pass = "conv2d.fwd",
                              .problem = "conv2d:n1_h3_w3_c1_k1_r2_p0",
                              .impl = impl,
                              .in = {x, w},
                              .out = {folder_ + "y.npy"}}),
              0);
    EXPECT_EQ(get("y.npy", {1, 2, 2, 1}), (std::vector<float>{6, 8, 12, 14}));
  }
}

TEST_F(OpCommandTest, ErrorsNameTensorGotAndWanted) {
  if (!built_pass("conv2d.fwd")) GTEST_SKIP() << "conv2d is not in this build";
  OpCommand command = {.pass = "conv2d.fwd", .problem = "n1_h3_w3_c1_k1_r2_p0", .out = {folder_ + "y.npy"}};
  command.in = {put("x.npy", {1, 3, 4, 1}, std::vector<float>(12)), put("w.npy", {1, 2, 2, 1}, {1, 0, 0, 1})};
  EXPECT_CONTAINS(error(command), "tensor 'x'");
  EXPECT_CONTAINS(error(command), "float32 (1, 3, 4, 1), the problem wants float32 (1, 3, 3, 1)");
  command.in.pop_back();
  EXPECT_CONTAINS(error(command), "--in takes 2 files (x w), got 1");
  command.in.push_back("-");
  command.in[0] = put("x.npy", {1, 3, 3, 1}, std::vector<float>(9));
  EXPECT_CONTAINS(error(command), "'w', which only a file can tell");
  command.out.clear();
  EXPECT_CONTAINS(error(command), "--out takes 1 files (y), got 0");
  command.pass = "conv2d.fdw";
  EXPECT_CONTAINS(error(command), "did you mean 'conv2d.fwd'?");
}

TEST_F(OpCommandTest, ImplementationsOnTheCpuTakeFp32) {
  if (!built_pass("relu.fwd")) GTEST_SKIP() << "activation is not in this build";
  OpCommand command = {.pass = "relu.fwd",
                       .problem = "n1_c2",
                       .dtype = "bf16",
                       .in = {put("x.npy", {1, 1, 1, 2}, {-1, 2})},
                       .out = {folder_ + "y.npy"}};
  EXPECT_CONTAINS(error(command), "no implementation");
  command.impl = "cpu_naive";
  EXPECT_CONTAINS(error(command), "CPU implementations take fp32");
}

TEST_F(OpCommandTest, InOutTensorsAreReadAndWritten) {
  if (!built_pass("sgd.step")) GTEST_SKIP() << "optimizer is not in this build";
  OpCommand command = {.pass = "sgd.step", .problem = "n2"};
  command.in = {"-", put("g.npy", {2}, {8, -8}), put("p.npy", {2}, {1, 1}), put("v.npy", {2}, {0, 0})};
  command.out = {folder_ + "p2.npy", folder_ + "v2.npy"};
  EXPECT_EQ(run_op_command(command), 0);
  EXPECT_EQ(get("p2.npy", {2}), (std::vector<float>{0, 2}));  // the derived step's learning rate is 1/8
  EXPECT_EQ(get("v2.npy", {2}), (std::vector<float>{8, -8}));
}

TEST_F(OpCommandTest, HelpListsTensorsInOrder) {
  for (const PassInfo& pass : all_passes()) {
    const std::string help = op_help(pass.id());
    EXPECT_CONTAINS(help, "--in");
    EXPECT_CONTAINS(help, "--out");
    EXPECT_CONTAINS(help, "cpu_naive");
    EXPECT_CONTAINS(op_help(""), pass.id());
  }
  if (!built_pass("conv2d.dgrad")) return;
  const std::string help = op_help("conv2d.dgrad", "n2_h7_w9_c17_k16_r3", "bf16");
  const size_t dy = help.find("dy            float32 (2, 7, 9, 16)"),
               w = help.find("w             float32 (16, 3, 3, 17)");
  const size_t dx = help.find("dx            float32 (2, 7, 9, 17)");
  EXPECT_TRUE(dy < w && w < dx && dx != std::string::npos) << help;
}

}  // namespace
}  // namespace kiln
