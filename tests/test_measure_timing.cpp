// The measuring: samples, turns and limits of a timing, the ceilings, and the files that remember.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "bench/ceilings.h"
#include "bench/plan_ranking.h"
#include "bench/timing.h"
#include "kernels/common/error.h"
#include "kernels/common/impl_choice.h"
#include "kernels/common/tune_cache.h"
#include "tests/support/runner.h"

namespace kiln {
namespace {

TEST(Timing, OnTheGpuALaunchTakesWhatItTakes) {
  if (!cuda_available()) GTEST_SKIP() << cuda_unavailable_reason();
  // Bound by arithmetic, so that what the caches and memory still do of one launch does not matter.
  const PassInfo* pass = built_pass("conv2d.fwd");
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
