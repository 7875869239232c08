// Profiles of a training step, and the comparison of implementations that is made from them.
#include <cmath>

#include "harness/profile_report.h"
#include "harness/swap.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;
using test::tiny_data;
using Kind = TracedNode::Kind;
using Json = nlohmann::ordered_json;

std::vector<TracedNode> nodes_of(const std::vector<std::pair<Kind, std::string>>& list) {
  std::vector<TracedNode> nodes;
  for (const auto& [kind, name] : list) nodes.push_back({.kind = kind, .name = name});
  return nodes;
}

TEST(Attribute, FindsTheNodesOfWholeReplays) {
  const auto nodes = nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, ""}, {Kind::kKernel, "a"}});
  const auto records = nodes_of({{Kind::kKernel, "a"},
                                 {Kind::kKernel, "of a library"},
                                 {Kind::kKernel, "a"},
                                 {Kind::kKernel, "a"},
                                 {Kind::kKernel, "of a library"},
                                 {Kind::kKernel, "a"}});
  std::string why;
  EXPECT_EQ(attribute(nodes, records, &why), (std::vector<int>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(why, "");
}

TEST(Attribute, AFillMayRunAsAKernelOrLeaveNoRecord) {
  const auto nodes = nodes_of({{Kind::kKernel, "a"}, {Kind::kFill, "[fill]"}, {Kind::kKernel, "b"}});
  std::string why;
  EXPECT_EQ(
      attribute(nodes, nodes_of({{Kind::kKernel, "a"}, {Kind::kFill, "[fill]"}, {Kind::kKernel, "b"}}), &why),
      (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(
      attribute(nodes, nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, "memset"}, {Kind::kKernel, "b"}}),
                &why),
      (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(
      attribute(
          nodes,
          nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, "b"}, {Kind::kKernel, "a"}, {Kind::kKernel, "b"}}),
          &why),
      (std::vector<int>{0, 2, 0, 2}));
  EXPECT_EQ(why, "");
}

TEST(Attribute, GoesByOrderWhereOnlyTheNamesDiffer) {
  const auto nodes = nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, "b"}});
  std::string why;
  EXPECT_EQ(
      attribute(
          nodes,
          nodes_of({{Kind::kKernel, "x"}, {Kind::kKernel, "y"}, {Kind::kKernel, "x"}, {Kind::kKernel, "y"}}),
          &why),
      (std::vector<int>{0, 1, 0, 1}));
  EXPECT_NE(why.find("order alone"), std::string::npos) << why;
}

TEST(Attribute, SaysWhyRecordsDoNotFit) {
  const auto nodes = nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, "b"}});
  std::string why;
  EXPECT_TRUE(
      attribute(nodes, nodes_of({{Kind::kKernel, "a"}, {Kind::kKernel, "c"}, {Kind::kKernel, "b"}}), &why)
          .empty());
  EXPECT_NE(why.find("'c' ran where 'b' was recorded"), std::string::npos) << why;
  EXPECT_TRUE(attribute(nodes, nodes_of({{Kind::kKernel, "a"}}), &why).empty());
  EXPECT_NE(why.find("ends before 'b'"), std::string::npos) << why;
  EXPECT_TRUE(
      attribute(
          nodes,
          nodes_of({{Kind::kKernel, "x"}, {Kind::kKernel, "y"}, {Kind::kKernel, "y"}, {Kind::kKernel, "x"}}),
          &why)
          .empty());
  EXPECT_TRUE(attribute(nodes, {}, &why).empty());
}

// Two replays of two steps, each replay a stretch of its own:
//   upload 0-1, step 0 2-5 and (at the same time) 4-6, step 1 6-9 | upload 100-101, step 0 101-105, step 1
//   107-108
TEST(Account, UnionGapsAndOverlapByHand) {
  StepProfile p;
  p.replays = 2;
  p.steps.resize(2);
  p.spans = {{.replay = 0, .step = ProfileSpan::kNoStep, .start_us = 0, .end_us = 1},
             {.replay = 0, .step = 0, .start_us = 2, .end_us = 5},
             {.replay = 0, .step = 0, .start_us = 4, .end_us = 6},
             {.replay = 0, .step = 1, .start_us = 6, .end_us = 9},
             {.replay = 1, .step = ProfileSpan::kNoStep, .start_us = 100, .end_us = 101},
             {.replay = 1, .step = 0, .start_us = 101, .end_us = 105},
             {.replay = 1, .step = 1, .start_us = 107, .end_us = 108}};
  account({0, 1}, &p);
  EXPECT_DOUBLE_EQ(p.busy_us, (8 + 6) / 2.0);
  EXPECT_DOUBLE_EQ(p.gap_us, (1 + 2) / 2.0);
  EXPECT_DOUBLE_EQ(p.overlap_us, 1 / 2.0);
  EXPECT_DOUBLE_EQ(p.upload_us, 1);
  EXPECT_EQ(p.steps[0].us, (std::vector<double>{4, 4}));
  EXPECT_EQ(p.steps[1].us, (std::vector<double>{3, 1}));
  EXPECT_DOUBLE_EQ(p.steps[0].gap_us, 0.5);
  EXPECT_DOUBLE_EQ(p.steps[1].gap_us, 1);
  EXPECT_EQ(p.steps[0].spans, 2);
  EXPECT_DOUBLE_EQ(p.steps[1].median_us(), 2);
  EXPECT_DOUBLE_EQ(p.steps[1].spread_pct(), 25);
  account({0}, &p);  // one stretch: the time between the replays is a gap too
  EXPECT_DOUBLE_EQ(p.gap_us, (1 + 2 + 91) / 2.0);
}

TrainOptions options_of(int batch, long long steps) {
  TrainOptions o;
  o.batch = batch;
  o.epochs = 100;
  o.max_steps = steps;
  o.lr = 0.01f;
  o.drain_every = 4;  // a drain in the middle of the measured steps
  return o;
}

struct Profiled {
  std::vector<float> losses;
  std::optional<StepProfile> profile;
};

Profiled train(const NetworkDescription& network, const DataPair& data, const Device& device,
               const TrainOptions& options, const ProfileOptions* profile) {
  Profiled run;
  Trainer trainer(network, data, device, options);
  if (profile) trainer.profile(*profile, [&](const StepProfile& p) { run.profile = p; });
  trainer.train([&](const DrainRecord& r) {
    run.losses.insert(run.losses.end(), r.step_losses.begin(), r.step_losses.end());
    return true;
  });
  return run;
}

// Steps, and copies between them, add up to the time that something ran, but for what ran at the same time:
// in two steps it is in both, in two kernels of one step it is in that step once.
void expect_sums(const ProfileReport& report) {
  const StepProfile& p = report.profile;
  const double slack = 1e-6 * p.busy_us;
  for (const auto* sums : {&report.phases, &report.layers, &report.passes, &report.bounds}) {
    double all = p.upload_us;
    int steps = 0;
    for (const ReportSum& sum : *sums) all += sum.us, steps += sum.steps;
    EXPECT_GE(all, p.busy_us - slack);
    EXPECT_LE(all, p.busy_us + p.overlap_us + slack);
    if (sums != &report.phases) {
      EXPECT_EQ(steps, static_cast<int>(p.steps.size()));
    }
  }
}

TEST(StepProfile, OnTheCpuItAccountsForTheStepAndChangesNothing) {
  const DataPair data = tiny_data(84, 8, 32, 10);  // 11 steps an epoch, the last of 4 images
  const NetworkDescription network = builtin_network("small_cnn");
  const TrainOptions options = options_of(8, 24);
  const ProfileOptions wanted = profile_options(cpu_device(), 0);
  const Profiled plain = train(network, data, cpu_device(), options, nullptr);
  const Profiled run = train(network, data, cpu_device(), options, &wanted);
  EXPECT_EQ(plain.losses.size(), 24u);
  EXPECT_EQ(plain.losses, run.losses);
  ASSERT_TRUE(run.profile);
  const StepProfile& p = *run.profile;
  EXPECT_EQ(p.source, "wall clock");
  EXPECT_EQ(p.replays, 5);
  EXPECT_EQ(p.batch, 8);
  EXPECT_EQ(p.spans.size(), p.steps.size() * 5);
  EXPECT_DOUBLE_EQ(p.overlap_us, 0);
  EXPECT_GT(p.unprofiled_us, 0);
  EXPECT_NEAR(p.accounted_us(), p.profiled_us, 0.1 * p.profiled_us);
  for (const ProfiledStep& step : p.steps) EXPECT_EQ(step.spans, 1) << step.layer << " " << step.pass;

  const ProfileReport report(p, cpu_device(), DType::kF32, Ceilings{});
  expect_sums(report);
  const std::string text = profile_text(report, 3);
  for (const char* part :
       {"by wall clock", "accounted for", "gaps", "backward", "conv2d.wgrad", "the 3 longest"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  const Json json = Json::parse(profile_json(report).dump());
  EXPECT_EQ(json["steps"].size(), p.steps.size());
  EXPECT_EQ(json["phases"].size(), 5u);
  EXPECT_TRUE(json["steps"][0]["floor_us"].is_null());  // a CPU has no ceilings
  const Json trace = Json::parse(chrome_trace(p, "cpu").dump());
  size_t slices = 0;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    ++slices;
    EXPECT_GE(event["dur"].get<double>(), 0);
    EXPECT_GE(event["ts"].get<double>(), 0);
  }
  EXPECT_EQ(slices, 2 * p.spans.size());
}

// With ceilings of 1 GB/s and 1 TFLOP/s, and an empty node of a microsecond.
TEST(StepProfile, VerdictsFollowTheirRule) {
  Ceilings c;
  c.read_gbps = c.write_gbps = c.copy_gbps = 1;
  c.fma_fp32_tflops = 1;
  c.graph_node_us = 1;
  StepProfile p;
  p.replays = 1;
  // 2 * 64 * 64 * 64 * 9 * 64 operations: 302 us; 4 * (64 * 64 * 64 * 2 + 64 * 64 * 9) bytes: 2244 us.
  p.steps = {
      {.layer = "a", .pass = "conv2d.fwd", .problem = "n64_h8_w8_c64_k64_r3", .us = {4000}, .spans = 1},
      {.layer = "b", .pass = "conv2d.fwd", .problem = "n64_h8_w8_c64_k64_r3", .us = {5}, .spans = 2},
      {.layer = "c", .pass = "step.finish", .us = {50}, .spans = 1}};
  const ProfileReport slow(p, cpu_device(), DType::kF32, c);
  EXPECT_EQ(slow.rows[0].bound, "bandwidth");
  EXPECT_NEAR(slow.rows[0].memory_us, 2244.6, 0.1);
  EXPECT_NEAR(slow.rows[0].arithmetic_us, 302.0, 0.1);
  EXPECT_NEAR(slow.rows[0].pct_floor, 100 * 2244.6 / 4000, 0.1);
  EXPECT_EQ(slow.rows[1].bound, "launch");  // below 3 us for each of its 2 kernels
  EXPECT_EQ(slow.rows[2].bound, "");
  c.read_gbps = c.write_gbps = c.copy_gbps = 100;
  const ProfileReport fast(p, cpu_device(), DType::kF32, c);
  EXPECT_EQ(fast.rows[0].bound, "compute");
}

TEST(StepProfile, IsCutDownToAShortRunAndRefusesOneThatIsTooShort) {
  const DataPair data = tiny_data(16, 4);
  const NetworkDescription network = test::tiny_network(true);
  const ProfileOptions wanted = {.warmup = 10, .replays = 20};
  const Profiled short_run = train(network, data, cpu_device(), options_of(8, 9), &wanted);
  ASSERT_TRUE(short_run.profile);
  EXPECT_EQ(short_run.profile->replays, 3);
  EXPECT_EQ(short_run.losses.size(), 9u);
  Trainer trainer(network, data, cpu_device(), options_of(8, 4));
  expect_error([&] { trainer.profile(wanted, {}); }, {"at least 5", "has 4"});
  const ProfileOptions unknown = {.source = "nsys"};
  Trainer other(network, data, cpu_device(), options_of(8, 60));
  expect_error([&] { other.profile(unknown, {}); }, {"unknown source of a profile 'nsys'"});
}

TEST(Swap, ChoicesAreAlternativesOneAtATime) {
  EXPECT_EQ(swap_choices("conv2d.fwd=naive|wgmma:64,batchnorm.*=naive"),
            (std::vector<std::string>{"conv2d.fwd=naive", "conv2d.fwd=wgmma:64", "batchnorm.*=naive"}));
  const LossComparison same = compare_losses({1, 2, 3}, {1, 2}, 20),
                       other = compare_losses({1, 2}, {1, 2.5f}, 20);
  EXPECT_TRUE(same.equal);
  EXPECT_EQ(same.steps, 2);
  EXPECT_FALSE(other.equal);
  EXPECT_DOUBLE_EQ(other.max_rel_diff, 0.2);
  EXPECT_DOUBLE_EQ(other.first_rel_diff, 0);
  EXPECT_TRUE(std::isinf(compare_losses({1}, {NAN}, 20).max_rel_diff));
}

TEST(Swap, OnTheCpuPredictsAndMeasuresTheStep) {
  const DataPair data = tiny_data(16, 4);
  const NetworkDescription network = test::tiny_network(true);
  const SwapSetup setup = {.network = network,
                           .data = data,
                           .device = cpu_device(),
                           .options = options_of(8, 0),
                           .profile = profile_options(cpu_device(), 0)};
  std::vector<SwapChoice> choices;
  for (const char* text : {"conv2d.fwd=cpu_naive", "conv2d.fwd=cpu_fast"})
    choices.push_back({text, ImplChoice(text)});
  const SwapReport report = run_swap(setup, choices);
  ASSERT_EQ(report.results.size(), 3u);
  const SwapResult &naive = report.results[0], &fast = report.results[1], &again = report.results[2];
  EXPECT_GT(report.step_us, 0);
  EXPECT_FALSE(naive.steps.empty());
  for (const SwappedStep& step : naive.steps) {
    EXPECT_EQ(step.pass, "conv2d.fwd");
    EXPECT_EQ(step.impl, "cpu_naive");
    EXPECT_EQ(step.default_impl, "cpu_fast");
    EXPECT_GT(step.us, 0);
  }
  EXPECT_NEAR(naive.predicted_us, report.step_us - naive.default_us + naive.us, 1e-6);
  EXPECT_GT(naive.measured_us, 0);
  EXPECT_EQ(naive.losses.steps, kSwapLossSteps);
  EXPECT_LT(naive.losses.max_rel_diff, 1e-2);
  EXPECT_TRUE(fast.steps.empty());  // the default
  for (const SwapResult* result : {&fast, &again}) {
    EXPECT_TRUE(result->losses.equal);
    EXPECT_NEAR(result->predicted_us, report.step_us, 1e-6);
  }
  EXPECT_EQ(Json::parse(swap_json(report).dump())["choices"].size(), 3u);
  EXPECT_NE(swap_text(report).find("it is the default here"), std::string::npos);

  if (impl_names("conv2d", "fwd", DeviceKind::kCuda).empty()) return;
  const SwapChoice elsewhere{"conv2d.fwd=naive", ImplChoice("conv2d.fwd=naive")};
  expect_error([&] { run_swap(setup, {elsewhere}); },
               {"'conv2d.fwd=naive'", "unknown implementation 'naive'"});
}

class StepProfileCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU: " << cuda_unavailable_reason();
  }
};

// Between events: an event behind each step costs up to 4 us.
double allowed_us(const StepProfile& p) {
  return 0.05 * p.unprofiled_us + 4 * static_cast<double>(p.steps.size());
}

TEST_F(StepProfileCuda, AccountsForTheStepAndChangesNothing) {
  const DataPair data = tiny_data(128 * 20, 8, 32, 10);
  const NetworkDescription network = builtin_network("resnet18");
  TrainOptions options = options_of(128, 90);
  options.precision = DType::kBF16;
  options.drain_every = 50;
  const Profiled plain = train(network, data, cuda_device(), options, nullptr);
  for (const char* source : {"", "events"}) {
    SCOPED_TRACE(source);
    ProfileOptions wanted = profile_options(cuda_device(), 0);
    wanted.source = source;
    Profiled run = train(network, data, cuda_device(), options, &wanted);
    EXPECT_EQ(plain.losses, run.losses);
    ASSERT_TRUE(run.profile);
    // Other programs may be using the GPU, so that the step with events and the step without differ.
    const auto off = [](const StepProfile& p) {
      return p.source != "cupti" && std::abs(p.accounted_us() - p.unprofiled_us) > allowed_us(p);
    };
    for (int more = 0; more < 4 && off(*run.profile); ++more) {
      run = train(network, data, cuda_device(), options, &wanted);
      ASSERT_TRUE(run.profile);
    }
    const StepProfile& p = *run.profile;
    for (const std::string& note : p.notes) std::printf("note: %s\n", note.c_str());
    EXPECT_EQ(p.replays, 20);
    for (const ProfiledStep& step : p.steps) {
      EXPECT_GE(step.spans, 1) << step.layer << " " << step.pass;
      EXPECT_EQ(step.us.size(), 20u);
      EXPECT_GT(step.median_us(), 0) << step.layer << " " << step.pass;
    }
    const ProfileReport report(p, cuda_device(), DType::kBF16, Ceilings{});
    expect_sums(report);
    if (p.source == "cupti") {
      EXPECT_NEAR(p.accounted_us(), p.profiled_us, 0.02 * p.profiled_us);
      EXPECT_GT(p.upload_us, 0);
    } else {
      EXPECT_NEAR(p.accounted_us(), p.unprofiled_us, allowed_us(p));
    }
  }
}

}  // namespace
}  // namespace kiln
