// The measuring: what must not become a row does not, statistics, and the files that remember.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "bench/layer_rows.h"
#include "kernels/common/error.h"
#include "kernels/common/tune_cache.h"
#include "tests/support/runner.h"

namespace kiln {
namespace {

constexpr const char* kProblem = "n2_h8_w8_c16_r2_st2_p0";
constexpr const char* kPass = "max_pool2d.fwd";

const PassInfo* find(const std::string& id) {
  for (const PassInfo& pass : all_passes()) {
    if (pass.id() == id) return &pass;
  }
  return nullptr;
}

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
    if (!find(kPass)) GTEST_SKIP() << kPass << " is not in this build";
  }
};

TEST_F(Measure, AWrongKernelGetsNoRow) {
  const PassInfo planted = with_planted(*find(kPass), [](float* y) { y[7] += 1; });
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
  const std::vector<RowResult> results = bench.measure(rows_of(*find(kPass), {"cpu_fast"}));
  EXPECT_NE(results[0].error.find("above the specified"), std::string::npos) << results[0].error;
  EXPECT_TRUE(std::isnan(results[0].counters.cold_us));
}

TEST_F(Measure, ASlowKernelShowsInItsRow) {
  const PassInfo planted =
      with_planted(*find(kPass), [](float*) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
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
  const PassInfo& pass = *find(kPass);
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
  const PassInfo* pass = find("conv2d.fwd");
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

// compare() of avg_pool2d.fwd's output as bf16 lies in memory, after `change` to y.
Verdict verdict_of_bf16(FillMode mode, const std::function<void(std::vector<uint16_t>& y)>& change) {
  const Case c{.pass = find("avg_pool2d.fwd"),
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
  if (!find("avg_pool2d.fwd")) GTEST_SKIP() << "avg_pool2d.fwd is not in this build";
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
  const PassInfo* pass = find("max_pool2d.fwd");
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

TEST(Timing, OnTheGpuALaunchTakesWhatItTakes) {
  if (!cuda_available()) GTEST_SKIP() << cuda_unavailable_reason();
  // Bound by arithmetic, so that what the caches and memory still do of one launch does not matter.
  const PassInfo* pass = find("conv2d.fwd");
  if (!pass) GTEST_SKIP() << "conv2d.fwd is not in this build";
  const AnyProblem problem = pass->parse("n8_h16_w16_c64_k64_r3", DType::kF32);
  const AnyPlan plan = pass->plan(problem, cuda_device(), "smem_tile");
  TensorBuffers buffers(pass->tensors(problem), DeviceKind::kCuda, kGuardBytes);
  buffers.upload(make_inputs(*pass, problem.text, DType::kF32, 1, FillMode::kReal));
  const OwnedStream stream(DeviceKind::kCuda);
  const DeviceMemory workspace(DeviceKind::kCuda, plan.workspace_bytes);
  const Bound bound = plan.bind(buffers.pointers(), workspace.data());
  bound.launch(stream.get());
  stream.synchronize();
  // A sample of one launch and one of many agree: neither the wait in front nor the host is in them. Other
  // programs may be using the GPU, which disturbs some tries; what is in every time disturbs all.
  double one = 0, many = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    one = time_launches({&bound, 1}, DeviceKind::kCuda, stream.get(), {.sample_seconds = 0}).seconds;
    many = time_launches({&bound, 1}, DeviceKind::kCuda, stream.get(), {.sample_seconds = 0.01}).seconds;
    if (std::abs(one - many) < 5e-6 + 0.05 * many) return;
  }
  FAIL() << "one launch takes " << one << " s, one of many " << many;
}

TEST(Ceilings, CopyTimesAreInterpolatedInTheirLogarithms) {
  Ceilings c;
  EXPECT_TRUE(std::isnan(c.copy_seconds(1e7)));
  c.copy_us = {2, 4, 8, 10, 20, 40, 80};
  EXPECT_NEAR(c.copy_seconds(4 * 0x1p20), 2e-6, 1e-12);
  EXPECT_NEAR(c.copy_seconds(32 * 0x1p20), 10e-6, 1e-12);
  EXPECT_NEAR(c.copy_seconds(std::sqrt(16.0 * 32) * 0x1p20), std::sqrt(80) * 1e-6, 1e-12);
  EXPECT_NEAR(c.copy_seconds(2 * 0x1p20), 1e-6, 1e-12) << "the first line goes on";
  EXPECT_NEAR(c.copy_seconds(512 * 0x1p20), 160e-6, 1e-12) << "the last rate stays";
}

TEST_F(Measure, ShareOfACopyIsNeverBelowThatOfTheCeiling) {
  Ceilings ceilings;
  ceilings.read_gbps = ceilings.write_gbps = ceilings.copy_gbps = 1e-3;
  const auto measured = [&] {
    LayerBench bench(cpu_device(), ceilings, brief());
    return bench.measure(rows_of(*find(kPass), {"cpu_fast"}))[0].counters;
  };
  EXPECT_TRUE(std::isnan(measured().pct_copy)) << "no copy was timed";
  ceilings.copy_us.fill(1e-9);
  const LayerCounters floor = measured();
  EXPECT_DOUBLE_EQ(floor.pct_copy, floor.pct_ceiling);
  ceilings.copy_us.fill(1e9);
  const LayerCounters copy = measured();
  EXPECT_NEAR(copy.pct_copy, 100 * 1e9 / copy.cold_us, 1e-6 * copy.pct_copy);
}

TEST(Timing, SummaryOfSamples) {
  const Timing t = summarize({5, 1, 3, 2, 4});
  EXPECT_EQ(t.seconds, 3);
  EXPECT_EQ(t.samples, 5);
  EXPECT_NEAR(t.spread_pct, 100.0 * 0.5 * (4 - 2) / 3, 1e-9);
  EXPECT_NEAR(t.median_spread_pct, 100 * 1.57 * 2 / std::sqrt(5.0) / 3, 1e-9);
}

TEST(Timing, TurnsAreTakenUntilEachHasEnough) {
  std::string order;
  const auto contestant = [&](char name) {
    return Bound([&order, name](Stream) {
      order += name;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    });
  };
  const Bound a = contestant('a'), b = contestant('b');
  std::vector<LaunchSampler> samplers;
  samplers.emplace_back(std::span(&a, 1), DeviceKind::kCpu, nullptr, 0);
  samplers.emplace_back(std::span(&b, 1), DeviceKind::kCpu, nullptr, 0);
  order.clear();
  int rounds = 0;
  const std::vector<Timing> timings = time_in_turns(
      samplers,
      {.sample_seconds = 0, .fewest = 4, .most = 6, .target_pct = 1e-6, .most_seconds = 10, .race = 1e9},
      [&] { ++rounds; });
  EXPECT_EQ(order, "abababababab");
  EXPECT_EQ(rounds, 6);
  EXPECT_EQ(timings[0].samples, 6);
  EXPECT_GE(timings[1].seconds, 200e-6);
}

TEST(Timing, WhatIsFarBehindGetsTheFewestSamples) {
  const Bound fast([](Stream) { std::this_thread::sleep_for(std::chrono::microseconds(300)); });
  const Bound slow([](Stream) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
  std::vector<LaunchSampler> samplers;
  samplers.emplace_back(std::span(&slow, 1), DeviceKind::kCpu, nullptr, 0);
  samplers.emplace_back(std::span(&fast, 1), DeviceKind::kCpu, nullptr, 0);
  const std::vector<Timing> timings = time_in_turns(
      samplers,
      {.sample_seconds = 0, .fewest = 6, .most = 30, .target_pct = 1e-6, .most_seconds = 10, .behind = 4});
  EXPECT_EQ(timings[0].samples, 4);
  EXPECT_EQ(timings[1].samples, 30);
}

TEST(Timing, WarmUpRoundsDoNotCount) {
  int launches = 0;
  const Bound bound([&](Stream) {
    ++launches;
    std::this_thread::sleep_for(std::chrono::milliseconds(launches < 5 ? 20 : 1));
  });
  std::vector<LaunchSampler> samplers;
  samplers.emplace_back(std::span(&bound, 1), DeviceKind::kCpu, nullptr, 0);  // one launch
  const std::vector<Timing> timings = time_in_turns(
      samplers, {.sample_seconds = 0, .fewest = 5, .most = 5, .most_seconds = 10, .warm_up_seconds = 0.05});
  EXPECT_EQ(launches, 1 + 3 + 5) << "warm-up is reckoned by what the first launch took, 20 ms";
  EXPECT_EQ(timings[0].samples, 5);
}

TEST(Timing, RestsBetweenSamplesAreNotCounted) {
  const Bound bound([](Stream) { std::this_thread::sleep_for(std::chrono::milliseconds(4)); });
  std::vector<LaunchSampler> samplers;
  samplers.emplace_back(std::span(&bound, 1), DeviceKind::kCpu, nullptr, 0);
  const auto start = std::chrono::steady_clock::now();
  const Timing t = time_in_turns(
      samplers, {.sample_seconds = 0, .fewest = 10, .most = 10, .most_seconds = 10, .rest = 3})[0];
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  EXPECT_GE(wall.count(), 10 * 4 * 0.004);
  EXPECT_LT(t.seconds, 0.012) << "a launch takes 4 ms, with its rest 16";
}

TEST(Timing, StopsAtTheTimeLimit) {
  const Bound slow([](Stream) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  const Timing t = time_launches({&slow, 1}, DeviceKind::kCpu, nullptr,
                                 {.sample_seconds = 0, .fewest = 1000, .most = 1000, .most_seconds = 0.05});
  EXPECT_LE(t.samples, 12);
  EXPECT_GE(t.samples, 3);
}

std::string temporary(const std::string& name) {
  return (std::filesystem::path(::testing::TempDir()) / ("kiln_measure_" + name)).string();
}

TEST(PlanRanking, IsRememberedAndDamageIsNamed) {
  const std::string path = temporary("plans.json");
  std::filesystem::remove(path);
  {
    PlanRanking ranking(path);
    EXPECT_EQ(ranking.find("k"), nullptr);
    ranking.set("k", {{"eng1", "tensor_core", 12.5}, {"eng2", "", 13}});
  }
  const PlanRanking again(path);
  ASSERT_NE(again.find("k"), nullptr);
  EXPECT_EQ(again.find("k")->at(0).engine, "eng1");
  EXPECT_EQ(again.find("k")->at(1).us, 13);
  std::ofstream(path) << "{\"plans\": [1";
  EXPECT_THROW(PlanRanking{path}, Error);
}

TEST(TuneCache, RoundTripAndDamage) {
  const std::string path = temporary("tune/tune.json");
  std::filesystem::remove(path);
  TuneCache cache = TuneCache::load(path);
  EXPECT_EQ(cache.find("GPU", "relu.fwd/n1/fp32"), nullptr);
  cache.set("GPU", "relu.fwd/n1/fp32", {"vectorized", 3.5, "naive", 4.5, "abc", "580.1", "0.1.0"});
  cache.save(path);
  const TuneCache again = TuneCache::load(path);
  const TunedChoice* found = again.find("GPU", "relu.fwd/n1/fp32");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->impl, "vectorized");
  EXPECT_EQ(found->heuristic_us, 4.5);
  EXPECT_EQ(again.find("another GPU", "relu.fwd/n1/fp32"), nullptr);
  std::ofstream(path) << "{}";
  EXPECT_THROW(TuneCache::load(path), Error);
}

TEST(TuneCache, SignatureFollowsTheChoices) {
  EXPECT_EQ(tuning_signature({"a", "b:1"}), tuning_signature({"a", "b:1"}));
  EXPECT_NE(tuning_signature({"a", "b:1"}), tuning_signature({"a", "b:2"}));
  EXPECT_NE(tuning_signature({"a", "b"}), tuning_signature({"ab"}));
}

}  // namespace
}  // namespace kiln
