// The measuring of layers: what must not become a row does not, and which rows there are.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <thread>

#include "bench/layer_rows.h"
#include "kernels/common/tune_cache.h"
#include "tests/support/runner.h"

namespace kiln {
namespace {

constexpr const char* kProblem = "n2_h8_w8_c16_r2_st2_p0";
constexpr const char* kPass = "max_pool2d.fwd";

// max_pool2d.fwd with one more implementation, "planted", that calls cpu_naive and then `after(y)`.
PassInfo with_planted(const PassInfo& pass, const std::function<void(float* y)>& after) {
  PassInfo planted = pass;
  planted.plan = [&pass, after](const AnyProblem& problem, const Device& device, std::string_view impl) {
    if (impl != "planted") return pass.plan(problem, device, impl);
    const AnyPlan honest = pass.plan(problem, device, "cpu_naive");
    AnyPlan plan;
    plan.workspace_bytes = honest.workspace_bytes;
    plan.bind = [honest, after](std::span<void* const> tensors, void* workspace) {
      const Bound bound = honest.bind(tensors, workspace);
      float* y = static_cast<float*>(tensors[1]);
      return Bound([bound, after, y](Stream stream) {
        bound.launch(stream);
        after(y);
      });
    };
    return plan;
  };
  return planted;
}

std::vector<LayerRow> rows_of(const PassInfo& pass, const std::vector<std::string>& impls) {
  std::vector<LayerRow> rows;
  for (const std::string& impl : impls) rows.push_back({&pass, "test", kProblem, DType::kF32, impl, false});
  return rows;
}

TimingOptions brief() { return {.sample_seconds = 1e-4, .fewest = 5, .most = 20, .most_seconds = 0.05}; }

class Measure : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_pass(kPass)) GTEST_SKIP() << kPass << " is not in this build";
  }
};

TEST_F(Measure, AWrongKernelGetsNoRow) {
  const PassInfo planted = with_planted(find_pass(kPass), [](float* y) { y[7] += 1; });
  LayerBench bench(cpu_device(), Ceilings{}, brief());
  const std::vector<RowResult> results =
      bench.measure(rows_of(planted, {"cpu_naive", "planted", "cpu_fast"}));
  EXPECT_EQ(results[0].error, "");
  EXPECT_NE(results[1].error.find("got"), std::string::npos) << results[1].error;
  EXPECT_TRUE(std::isnan(results[1].counters.cold_us));
  EXPECT_EQ(results[2].error, "") << "the others keep their rows";
  EXPECT_GT(results[2].counters.cold_us, 0);
}

TEST_F(Measure, AnImpossibleRateGetsNoRow) {
  Ceilings slow;
  slow.dram_gbps = 1e-6;  // a kilobyte a second
  LayerBench bench(cpu_device(), slow, brief());
  const std::vector<RowResult> results = bench.measure(rows_of(find_pass(kPass), {"cpu_fast"}));
  EXPECT_NE(results[0].error.find("above the specified"), std::string::npos) << results[0].error;
  EXPECT_TRUE(std::isnan(results[0].counters.cold_us));
}

TEST_F(Measure, ASlowKernelShowsInItsRow) {
  const PassInfo planted = with_planted(
      find_pass(kPass), [](float*) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  LayerBench bench(cpu_device(), Ceilings{}, brief());
  const std::vector<RowResult> results =
      bench.measure(rows_of(planted, {"cpu_naive", "planted", "cpu_fast"}));
  ASSERT_EQ(results[1].error, "");
  EXPECT_GT(results[1].counters.cold_us, 2000);
  EXPECT_LT(results[1].counters.x_naive, 0.5);
  EXPECT_NEAR(results[1].counters.x_naive, results[0].counters.cold_us / results[1].counters.cold_us, 1e-9);
}

TEST_F(Measure, WhatIsPickedIsComparedWithTheFastest) {
  LayerBench bench(cpu_device(), Ceilings{}, brief());
  const PassInfo& pass = find_pass(kPass);
  const std::string choice = pass.choices(pass.parse(kProblem, DType::kF32), cpu_device()).at(0);
  const std::vector<RowResult> results = bench.measure(rows_of(pass, {"cpu_naive", "cpu_fast"}));
  ASSERT_EQ(choice, "cpu_fast");
  EXPECT_TRUE(std::isnan(results[0].counters.pick_ratio));
  EXPECT_NEAR(
      results[1].counters.pick_ratio,
      results[1].counters.cold_us / std::min(results[0].counters.cold_us, results[1].counters.cold_us), 1e-9);
}

TEST_F(Measure, RowsFollowTheFilter) {
  LayerOptions options;
  options.problems = {{"", "max_pool2d", kProblem, "fwd"}};
  PlanRanking ranking("");
  EXPECT_EQ(layer_rows(options, cpu_device(), ranking).size(), 2u);
  options.filter = "cpu_fast";
  EXPECT_EQ(layer_rows(options, cpu_device(), ranking).size(), 1u);
  options.filter = "-cpu_fast";
  EXPECT_EQ(layer_rows(options, cpu_device(), ranking).at(0).impl, "cpu_naive");
  options.filter = "conv2d";
  EXPECT_TRUE(layer_rows(options, cpu_device(), ranking).empty());
}

TEST_F(Measure, ATunedConfigHasARowWhileItsSignatureHolds) {
  const PassInfo* pass = built_pass("conv2d.fwd");
  const Device& device = nominal_cuda_device();
  LayerOptions options;
  options.problems = {{"", "conv2d", "n512_h32_w32_c64_k64_r3", "fwd"}};
  options.filter = "wgmma";
  const AnyProblem problem = pass ? pass->parse(options.problems[0].text, DType::kBF16) : AnyProblem{};
  std::string config, signature;
  if (pass) {
    const std::vector<std::string> choices = pass->choices(problem, device);
    signature = tuning_signature(choices);
    for (const std::string& choice : choices) {
      if (choice.starts_with("wgmma") && choice.find(':') != std::string::npos) config = choice;
    }
  }
  if (config.empty()) GTEST_SKIP() << "this build has no implementation with configs";
  options.tune_cache = (std::filesystem::path(::testing::TempDir()) / "kiln_measure_tune.json").string();
  PlanRanking ranking("");
  const auto rows_with = [&](const std::string& held) {
    TuneCache cache;
    cache.set(device.name, tuning_key("conv2d", "fwd", problem.text, DType::kBF16),
              {.impl = config,
               .us = 1,
               .heuristic = "wgmma",
               .heuristic_us = 1,
               .signature = held,
               .driver = "",
               .kiln = ""});
    cache.save(options.tune_cache);
    int count = 0;
    for (const LayerRow& row : layer_rows(options, device, ranking)) count += row.impl == config;
    return count;
  };
  EXPECT_EQ(rows_with(signature), 1);
  EXPECT_EQ(rows_with("of another list"), 0);
}

TEST_F(Measure, ShareOfACopyIsNeverBelowThatOfTheCeiling) {
  Ceilings ceilings;
  ceilings.read_gbps = ceilings.write_gbps = ceilings.copy_gbps = 1e-3;
  const auto measured = [&] {
    LayerBench bench(cpu_device(), ceilings, brief());
    return bench.measure(rows_of(find_pass(kPass), {"cpu_fast"}))[0].counters;
  };
  EXPECT_TRUE(std::isnan(measured().pct_copy)) << "no copy was timed";
  ceilings.copy_us.fill(1e-9);
  const LayerCounters floor = measured();
  EXPECT_DOUBLE_EQ(floor.pct_copy, floor.pct_ceiling);
  ceilings.copy_us.fill(1e9);
  const LayerCounters copy = measured();
  EXPECT_NEAR(copy.pct_copy, 100 * 1e9 / copy.cold_us, 1e-6 * copy.pct_copy);
}

// compare() of avg_pool2d.fwd's output as bf16 lies in memory, after `change` to y.
Verdict verdict_of_bf16(FillMode mode, const std::function<void(std::vector<uint16_t>& y)>& change) {
  const Case c{.pass = built_pass("avg_pool2d.fwd"),
               .problem = "n2_h64_w64_c64_r2_st2_p0",
               .dtype = DType::kBF16,
               .device = &cpu_device(),
               .impl = "planted",
               .mode = mode};
  const std::shared_ptr<const Reference> reference = judge(c);
  const HostTensor& wanted = reference->outputs[1];
  std::vector<uint16_t> y(static_cast<size_t>(wanted.spec.elements()));
  for (size_t i = 0; i < y.size(); ++i) y[i] = bf16_bits(wanted.as<float>()[i]);
  change(y);
  return compare(c, {{DType::kBF16, nullptr}, {DType::kBF16, y.data()}}, *reference);
}

TEST(Compare, NamesTheFirstWrongElementOfBf16Views) {
  if (!built_pass("avg_pool2d.fwd")) GTEST_SKIP() << "avg_pool2d.fwd is not in this build";
  for (const FillMode mode : {FillMode::kExact, FillMode::kReal}) {
    const auto verdict = [&](const std::function<void(std::vector<uint16_t>&)>& change) {
      return verdict_of_bf16(mode, change);
    };
    const Verdict right = verdict([](std::vector<uint16_t>&) {});
    EXPECT_TRUE(right.ok) << right.message;
    const auto far = [](uint16_t bits) { return bf16_bits(bf16_value(bits) * 1.5f + 1); };
    const Verdict two = verdict([&](std::vector<uint16_t>& y) {
      y[64 * 32 + 65] = far(y[64 * 32 + 65]);  // [0,1,1,1]
      y.back() = far(y.back());
    });
    EXPECT_NE(two.message.find("2 of 131072 elements are wrong, the first at [0,1,1,1]"), std::string::npos)
        << two.message;
    for (const uint16_t bad :
         {uint16_t{0xffff}, uint16_t{0x7f80}}) {  // NaN as unwritten memory has it, infinity
      const Verdict verdict_of_bad = verdict([&](std::vector<uint16_t>& y) { y[5000] = bad; });
      EXPECT_NE(verdict_of_bad.message.find("1 of 131072 elements are wrong"), std::string::npos)
          << verdict_of_bad.message;
    }
  }
}

TEST(Staging, HoldsWhatTheDeviceComputed) {
  const PassInfo* pass = built_pass("max_pool2d.fwd");
  if (!pass) GTEST_SKIP() << "max_pool2d.fwd is not in this build";
  std::vector<std::pair<const Device*, DType>> cases = {{&cpu_device(), DType::kF32}};
  if (cuda_available()) cases.push_back({&cuda_device(), DType::kBF16});
  for (const auto& [device, dtype] : cases) {
    const AnyProblem problem = pass->parse("n3_h31_w17_c72_r2_st2_p0_arg8", dtype);
    const AnyPlan plan = pass->plan(problem, *device, device->is_cuda() ? "naive" : "cpu_naive");
    TensorBuffers buffers(pass->tensors(problem), device->kind, kGuardBytes);
    buffers.upload(make_inputs(*pass, problem.text, dtype, 1, FillMode::kReal));
    const OwnedStream stream(device->kind);
    const DeviceMemory workspace(device->kind, plan.workspace_bytes);
    plan.bind(buffers.pointers(), workspace.data()).launch(stream.get());
    stream.synchronize();
    const HostTensors wanted = buffers.download();
    const std::vector<TensorView> wanted_views = views_of(wanted);
    const std::vector<TensorView> got = shared_staging().download(buffers, device->kind);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].data != nullptr, wanted[i].spec.is_output());
      for (int64_t j = 0; j < wanted[i].spec.elements(); ++j) {
        ASSERT_EQ(got[i].value(j), wanted_views[i].value(j)) << device->name << " " << wanted[i].spec.name;
      }
    }
  }
}

}  // namespace
}  // namespace kiln
