// The trainer on small data: it learns, repeats itself bit by bit, continues where it stopped, and uses every
// image.
#include <set>

#include "nn/resident_data.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;
using test::temp_path;
using test::tiny_data;
using test::tiny_network;

TrainOptions tiny_options() {
  TrainOptions o;
  o.batch = 8;
  o.epochs = 2;
  o.lr = 0.05f;
  o.augment_pad = 1;
  o.augment_cutout = 2;
  o.drain_every = 3;
  o.seed = 4;
  return o;
}

std::vector<float> train_losses(Trainer* trainer) {
  std::vector<float> losses;
  trainer->train([&](const DrainRecord& r) {
    losses.insert(losses.end(), r.step_losses.begin(), r.step_losses.end());
    return true;
  });
  return losses;
}

TEST(NnTrainer, OverfitsATinyBatch) {
  const DataPair data = tiny_data(16, 4);
  TrainOptions o;
  o.batch = 16;
  o.epochs = 80;
  o.lr = 0.05f;
  o.augment_pad = 0;
  o.augment_flip = Flip::kNone;
  Trainer trainer(tiny_network(true), data, cpu_device(), o);
  const std::vector<float> losses = train_losses(&trainer);
  ASSERT_EQ(losses.size(), 80u);
  EXPECT_GT(losses.front(), 1.0f);
  EXPECT_LT(losses.back(), 0.02f);
}

TEST(NnTrainer, LearnsWhatGeneralises) {
  const DataPair data = tiny_data(256, 101);
  TrainOptions o;
  o.batch = 32;
  o.epochs = 6;
  o.lr = 0.05f;
  o.augment_pad = 0;
  o.augment_flip = Flip::kNone;
  Trainer trainer(tiny_network(true), data, cpu_device(), o);
  const EvalResult before = trainer.evaluate();
  int epochs = 0;
  trainer.train([](const DrainRecord&) { return true; }, [&](int done) { EXPECT_EQ(done, ++epochs); });
  const EvalResult after = trainer.evaluate();
  EXPECT_EQ(epochs, 6);
  EXPECT_EQ(after.images, 101);
  EXPECT_LT(after.loss, before.loss);
  EXPECT_GT(after.accuracy, 0.9);
}

TEST(NnTrainer, SameSeedSameBitsOtherSeedOtherBits) {
  const DataPair data = tiny_data(28, 5);
  TrainOptions o = tiny_options();
  Trainer a(tiny_network(true), data, cpu_device(), o), b(tiny_network(true), data, cpu_device(), o);
  o.seed = 5;
  Trainer c(tiny_network(true), data, cpu_device(), o);
  const std::vector<float> losses = train_losses(&a);
  EXPECT_EQ(losses, train_losses(&b));
  EXPECT_NE(losses, train_losses(&c));
}

TEST(NnTrainer, TailBatchIsTrainedOn) {
  const DataPair data = tiny_data(28, 5);  // batches of 8, 8, 8 and 4
  Trainer trainer(tiny_network(true), data, cpu_device(), tiny_options());
  EXPECT_EQ(trainer.steps_per_epoch(), 4);
  EXPECT_EQ(trainer.total_steps(), 8);
  std::vector<long long> steps;
  trainer.train([&](const DrainRecord& r) {
    steps.push_back(r.step);
    EXPECT_EQ(r.skipped_updates, 0);
    return true;
  });
  EXPECT_EQ(steps, (std::vector<long long>{3, 6, 8}));
  bool tail = false;
  for (const auto& [problem, impl] : trainer.chosen_impls())
    tail = tail || problem.find("augment.fwd n4_") == 0;
  EXPECT_TRUE(tail);
}

TEST(NnTrainer, ABatchLargerThanTheDataIsTheData) {
  TrainOptions o = tiny_options();
  o.batch = 100;
  Trainer trainer(tiny_network(true), tiny_data(6, 3), cpu_device(), o);
  EXPECT_EQ(trainer.steps_per_epoch(), 1);
  EXPECT_EQ(train_losses(&trainer).size(), 2u);
}

TEST(NnTrainer, EpochOrderIsAFreshPermutation) {
  std::set<std::vector<int32_t>> seen;
  for (long long epoch = 0; epoch < 3; ++epoch) {
    std::vector<int32_t> order = epoch_order(9, epoch, 1000, true);
    EXPECT_TRUE(seen.insert(order).second);
    std::sort(order.begin(), order.end());
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(order[i], i);
  }
  EXPECT_NE(epoch_order(9, 0, 1000, true), epoch_order(10, 0, 1000, true));
  EXPECT_EQ(epoch_order(9, 0, 3, false), (std::vector<int32_t>{0, 1, 2}));
}

// Without batchnorm, augmentation and updates an epoch's mean loss is the loss over the data set: every image
// is seen once.
TEST(NnTrainer, EveryImageIsSeenOnceAnEpoch) {
  DataPair data = tiny_data(29, 29);
  data.test = data.train;
  const NetworkDescription network = parse_network(R"({"name": "line", "layers": [
      {"id": "flat", "type": "flatten"}, {"id": "fc", "type": "linear", "features": "classes"}]})");
  TrainOptions o = tiny_options();
  o.lr = 0;
  o.epochs = 3;
  o.augment_pad = 0;
  o.augment_flip = Flip::kNone;
  o.augment_cutout = 0;
  o.drain_every = 4;
  Trainer trainer(network, data, cpu_device(), o);
  const EvalResult all = trainer.evaluate();
  int drains = 0;
  trainer.train([&](const DrainRecord& r) {
    ++drains;
    EXPECT_NEAR(r.loss, all.loss, 1e-6);
    EXPECT_NEAR(r.accuracy, all.accuracy, 1e-12);
    return true;
  });
  EXPECT_EQ(drains, 3);
}

TEST(NnTrainer, SavedWeightsGiveTheSameLogits) {
  const DataPair data = tiny_data(28, 37);
  Trainer trained(tiny_network(true), data, cpu_device(), tiny_options());
  train_losses(&trained);
  const std::string path = temp_path("w.safetensors"), again = temp_path("again.safetensors");
  trained.save_weights(path);
  TrainOptions o = tiny_options();
  o.seed = 77;
  Trainer loaded(tiny_network(true), data, cpu_device(), o);
  EXPECT_NE(loaded.evaluate().loss, trained.evaluate().loss);
  loaded.load_weights(path);
  EXPECT_EQ(loaded.evaluate().loss, trained.evaluate().loss);
  EXPECT_EQ(loaded.evaluate().correct, trained.evaluate().correct);
  loaded.save_weights(again);
  EXPECT_EQ(test::file_bytes(path), test::file_bytes(again));
}

TEST(NnTrainer, WeightsOfAnotherNetworkAreRefusedByTensor) {
  const DataPair data = tiny_data(8, 4);
  Trainer smooth(tiny_network(false), data, cpu_device(), tiny_options());
  const std::string path = temp_path("w.safetensors");
  smooth.save_weights(path);
  Trainer kinked(tiny_network(true), data, cpu_device(), tiny_options());  // its fc1 sees a smaller image
  expect_error([&] { kinked.load_weights(path); }, {path, "tensor 'fc1.weight'", "[7, 80]", "[7, 20]"});
  std::string text = network_to_json(tiny_network(false));
  for (size_t at; (at = text.find("\"conv3\"")) != std::string::npos;) text.replace(at, 7, "\"conv4\"");
  Trainer renamed(parse_network(text), data, cpu_device(), tiny_options());
  expect_error([&] { renamed.load_weights(path); }, {"'conv4.weight'", "missing", "'conv3.weight'"});
  expect_error([&] { smooth.load_state(path); }, {"'conv1.weight.velocity'", "missing"});
}

void resumed_is_uninterrupted(TrainOptions options) {
  const DataPair data = tiny_data(28, 5);
  const std::string weights = temp_path("w"), state = temp_path("s");
  Trainer whole(tiny_network(true), data, cpu_device(), options);
  train_losses(&whole);
  whole.save_weights(temp_path("whole_w"));
  whole.save_state(temp_path("whole_s"));

  Trainer first(tiny_network(true), data, cpu_device(), options);
  first.train([](const DrainRecord& r) { return r.step < 6; });  // stops in the second epoch
  first.save_weights(weights);
  first.save_state(state);
  options.seed = 1234;  // the run's own seed is in the state
  Trainer second(tiny_network(true), data, cpu_device(), options);
  second.load_weights(weights);
  second.load_state(state);
  EXPECT_EQ(train_losses(&second).size(), 2u);
  second.save_weights(temp_path("second_w"));
  second.save_state(temp_path("second_s"));
  EXPECT_EQ(test::file_bytes(temp_path("whole_w")), test::file_bytes(temp_path("second_w")));
  EXPECT_EQ(test::file_bytes(temp_path("whole_s")), test::file_bytes(temp_path("second_s")));

  options.batch = 4;
  Trainer other(tiny_network(true), data, cpu_device(), options);
  expect_error([&] { other.load_state(state); }, {"batch 8", "4"});
}

TEST(NnTrainer, ResumedRunIsTheUninterruptedRun) { resumed_is_uninterrupted(tiny_options()); }

TEST(NnTrainer, ResumedRunOfAdamwIsTheUninterruptedRun) {
  TrainOptions o = tiny_options();
  o.optimizer = Optimizer::kAdamw;
  o.lr = 2e-3f;
  o.clip_norm = 0.5f;
  o.schedule = Schedule::kStep;
  o.step_epochs = 1;
  resumed_is_uninterrupted(o);
}

TEST(NnTrainer, StateOfTheOtherOptimizerIsRefused) {
  const DataPair data = tiny_data(8, 4);
  TrainOptions sgd = tiny_options(), adamw = tiny_options();
  adamw.optimizer = Optimizer::kAdamw;
  Trainer a(tiny_network(true), data, cpu_device(), sgd), b(tiny_network(true), data, cpu_device(), adamw);
  const std::string of_sgd = temp_path("sgd"), of_adamw = temp_path("adamw");
  a.save_state(of_sgd);
  b.save_state(of_adamw);
  expect_error([&] { a.load_state(of_adamw); }, {of_adamw, "state of adamw", "optimizer is sgd"});
  expect_error([&] { b.load_state(of_sgd); }, {of_sgd, "state of sgd", "optimizer is adamw"});
  EXPECT_STREQ(name_of(optimizer_from_name("adamw")), "adamw");
  expect_error([] { optimizer_from_name("adam"); }, {"unknown optimizer 'adam'", "did you mean 'adamw'"});
}

TEST(NnTrainer, AdamwLearns) {
  TrainOptions o = tiny_options();
  o.optimizer = Optimizer::kAdamw;
  o.batch = 32;
  o.epochs = 8;
  o.lr = 5e-3f;
  o.augment_pad = 0;
  o.augment_flip = Flip::kNone;
  o.augment_cutout = 0;
  Trainer trainer(test::tiny_mobile_network(true), tiny_data(256, 101), cpu_device(), o);
  train_losses(&trainer);
  EXPECT_GT(trainer.evaluate().accuracy, 0.9);
}

// One channel and many classes: nothing is made for CIFAR-10 alone.
TEST(NnTrainer, TakesGreyImagesOfManyClasses) {
  const NetworkDescription network = test::tiny_mobile_network(true);
  DataPair data = tiny_data(20, 7, 6, 17);
  for (Dataset* d : {&data.train, &data.test}) {
    d->channels = 1;
    d->images.resize(static_cast<size_t>(d->count()) * 36);
  }
  data.mean = {0.4f};
  data.std = {0.25f};
  Trainer trainer(network, data, cpu_device(), tiny_options());
  EXPECT_EQ(train_losses(&trainer).size(), 6u);
  EXPECT_EQ(trainer.evaluate().images, 7);
}

TEST(NnTrainer, MaxStepsStopsWithoutChangingTheSchedule) {
  const DataPair data = tiny_data(28, 5);
  TrainOptions o = tiny_options();
  Trainer whole(tiny_network(true), data, cpu_device(), o);
  const std::vector<float> losses = train_losses(&whole);
  o.max_steps = 5;
  Trainer cut(tiny_network(true), data, cpu_device(), o);
  EXPECT_EQ(cut.total_steps(), 5);
  EXPECT_EQ(train_losses(&cut), std::vector<float>(losses.begin(), losses.begin() + 5));
}

TEST(NnTrainer, AnUpdateThatIsNotFiniteIsSkipped) {
  TrainOptions o = tiny_options();
  o.lr = 1e38f;
  o.schedule = Schedule::kConstant;
  o.drain_every = 1;
  Trainer trainer(tiny_network(true), tiny_data(28, 5), cpu_device(), o);
  long long skipped = 0;
  trainer.train([&](const DrainRecord& r) {
    skipped = r.skipped_updates;
    return true;
  });
  EXPECT_GT(skipped, 0);
  const std::string before = temp_path("w");
  trainer.save_weights(before);
  EXPECT_FALSE(test::file_bytes(before).empty());
}

TEST(NnTrainer, RefusesWhatItCannotDo) {
  const DataPair data = tiny_data(8, 4);
  TrainOptions o = tiny_options();
  o.precision = DType::kBF16;
  expect_error([&] { Trainer(tiny_network(true), data, cpu_device(), o); }, {"bf16", "fp32"});
  o = tiny_options();
  o.fusions_off = {"bn"};
  expect_error([&] { Trainer(tiny_network(true), data, cpu_device(), o); }, {"unknown fusion 'bn'"});
  o = tiny_options();
  o.batch = 0;
  expect_error([&] { Trainer(tiny_network(true), data, cpu_device(), o); }, {"batch"});
  o = tiny_options();
  o.step_epochs = 0;
  expect_error([&] { Trainer(tiny_network(true), data, cpu_device(), o); }, {"step_epochs"});
  o = tiny_options();
  o.clip_norm = -1;
  expect_error([&] { Trainer(tiny_network(true), data, cpu_device(), o); }, {"clip_norm"});
  Trainer once(tiny_network(true), data, cpu_device(), tiny_options());
  once.train([](const DrainRecord&) { return false; });
  expect_error([&] { once.train([](const DrainRecord&) { return true; }); }, {"once"});
}

}  // namespace
}  // namespace kiln
