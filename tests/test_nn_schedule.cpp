// Learning rates at named steps.
#include "nn/schedule.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

TEST(NnSchedule, NamesRoundTrip) {
  for (const char* name : {"constant", "cosine", "one_cycle", "linear", "step"}) {
    EXPECT_STREQ(name_of(schedule_from_name(name)), name);
  }
  test::expect_error([] { schedule_from_name("cosin"); }, {"cosin", "did you mean 'cosine'"});
}

TEST(NnSchedule, ConstantAndLinear) {
  const LearningRate constant = {.schedule = Schedule::kConstant, .peak = 0.5, .total = 10};
  EXPECT_DOUBLE_EQ(constant.at(0), 0.5);
  EXPECT_DOUBLE_EQ(constant.at(9), 0.5);
  const LearningRate linear = {.schedule = Schedule::kLinear, .peak = 1, .final_factor = 0.2, .total = 10};
  EXPECT_DOUBLE_EQ(linear.at(0), 1);
  EXPECT_DOUBLE_EQ(linear.at(5), 0.6);
  EXPECT_NEAR(linear.at(9), 0.28, 1e-12);
}

TEST(NnSchedule, CosineIsPyTorchsCosineAnnealing) {
  const LearningRate cosine = {.schedule = Schedule::kCosine, .peak = 0.4, .total = 8};
  EXPECT_DOUBLE_EQ(cosine.at(0), 0.4);
  EXPECT_NEAR(cosine.at(2), 0.2 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(cosine.at(4), 0.2, 1e-12);
  EXPECT_NEAR(cosine.at(6), 0.2 * (1 - std::sqrt(0.5)), 1e-12);
  const LearningRate floor = {.schedule = Schedule::kCosine, .peak = 0.4, .final_factor = 0.5, .total = 8};
  EXPECT_NEAR(floor.at(4), 0.3, 1e-12);
}

TEST(NnSchedule, WarmupClimbsToThePeakFirst) {
  const LearningRate rate = {.schedule = Schedule::kCosine, .peak = 1, .warmup = 4, .total = 12};
  EXPECT_DOUBLE_EQ(rate.at(0), 0.25);
  EXPECT_DOUBLE_EQ(rate.at(1), 0.5);
  EXPECT_DOUBLE_EQ(rate.at(3), 1);
  EXPECT_DOUBLE_EQ(rate.at(4), 1);
  EXPECT_NEAR(rate.at(8), 0.5, 1e-12);
}

TEST(NnSchedule, StepIsPyTorchsStepLr) {
  // torch.optim.lr_scheduler.StepLR(step_size=2, gamma=0.1), with 5 steps an epoch
  const LearningRate rate = {
      .schedule = Schedule::kStep, .peak = 0.4, .total = 30, .step_every = 2 * 5, .step_factor = 0.1};
  EXPECT_DOUBLE_EQ(rate.at(0), 0.4);
  EXPECT_DOUBLE_EQ(rate.at(9), 0.4);
  EXPECT_DOUBLE_EQ(rate.at(10), 0.4 * 0.1);
  EXPECT_DOUBLE_EQ(rate.at(19), 0.4 * 0.1);
  EXPECT_DOUBLE_EQ(rate.at(29), 0.4 * 0.1 * 0.1);
  // A third of three epochs of 7 steps: the drop is at step 7 whatever the rounding.
  const LearningRate thirds = {
      .schedule = Schedule::kStep, .peak = 1, .total = 21, .step_every = 3.0 / 3.0000000001 * 7};
  EXPECT_DOUBLE_EQ(thirds.at(6), 1);
  EXPECT_DOUBLE_EQ(thirds.at(7), 0.1);
  const LearningRate warm = {
      .schedule = Schedule::kStep, .peak = 1, .warmup = 4, .total = 30, .step_every = 10};
  EXPECT_DOUBLE_EQ(warm.at(0), 0.25);
  EXPECT_DOUBLE_EQ(warm.at(9), 1);
  EXPECT_DOUBLE_EQ(warm.at(10), 0.1);
}

TEST(NnSchedule, OneCycleIsPyTorchsWithLinearLegs) {
  // torch.optim.lr_scheduler.OneCycleLR(max_lr=1, total_steps=20, pct_start=0.3, anneal_strategy='linear',
  // div_factor=25, final_div_factor=1e9)
  const LearningRate rate = {.schedule = Schedule::kOneCycle, .peak = 1, .total = 20};
  EXPECT_NEAR(rate.at(0), 0.04, 1e-12);
  EXPECT_NEAR(rate.at(1), 0.04 + 0.96 / 5, 1e-12);
  EXPECT_NEAR(rate.at(5), 1, 1e-12);
  EXPECT_NEAR(rate.at(12), 0.5, 1e-12);
  EXPECT_NEAR(rate.at(19), 0, 1e-12);
}

}  // namespace
}  // namespace kiln
