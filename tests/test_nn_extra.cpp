// What small networks and small data do not reach: several evaluation batches, a gradient that alone is not
// finite, and files that are longer than they should be.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "data/dataset.h"
#include "data/safetensors.h"
#include "nn/backend.h"
#include "nn/step_finish.h"
#include "tests/support/device_test.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

// Images [begin, end) of a set.
Dataset part_of(const Dataset& data, size_t begin, size_t end) {
  Dataset part = data;
  const size_t image = data.images.size() / data.labels.size();
  part.labels.assign(data.labels.begin() + static_cast<std::ptrdiff_t>(begin),
                     data.labels.begin() + static_cast<std::ptrdiff_t>(end));
  part.images.assign(data.images.begin() + static_cast<std::ptrdiff_t>(begin * image),
                     data.images.begin() + static_cast<std::ptrdiff_t>(end * image));
  return part;
}

// 730 test images are evaluated as 500 and 230: the result is that of both parts, weighted by their sizes.
TEST(NnExtra, EvaluationInBatchesIsTheMeanOverTheImages) {
  constexpr size_t kFirst = 500, kAll = 730;
  DataPair data = test::tiny_data(8, kAll);
  // The parts differ in difficulty: the second has the first's labels.
  for (size_t i = kFirst; i < kAll; ++i) data.test.labels[i] = data.test.labels[i - kFirst + 1];
  const auto evaluate = [&](size_t begin, size_t end) {
    DataPair pair = data;
    pair.test = part_of(data.test, begin, end);
    TrainOptions o;
    o.batch = 8;
    o.seed = 3;
    return Trainer(test::tiny_network(true), pair, cpu_device(), o).evaluate();
  };
  const EvalResult all = evaluate(0, kAll), first = evaluate(0, kFirst), second = evaluate(kFirst, kAll);
  EXPECT_GT(std::abs(first.loss - second.loss), 1e-3);
  EXPECT_EQ(all.images, static_cast<long long>(kAll));
  EXPECT_EQ(all.correct, first.correct + second.correct);
  const double loss = (first.loss * kFirst + second.loss * (kAll - kFirst)) / kAll;
  EXPECT_NEAR(all.loss, loss, 1e-6 * loss);
}

class StepFinish : public DeviceTest {};

TEST_P(StepFinish, JudgesLossAndGradientNorm) {
  const bool cuda = GetParam() == DeviceKind::kCuda;
  const std::unique_ptr<Backend> backend = make_backend(device());
  constexpr uint32_t kCapacity = 3;
  const Memory state = backend->allocate(sizeof(StepState)), summary = backend->allocate(2 * sizeof(float));
  const Memory norm = backend->allocate(sizeof(float)),
               ring = backend->allocate(kCapacity * sizeof(StepRecord));
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  uint32_t step = 4;
  for (const auto& [loss, gradient, finite] : {std::tuple{1.5f, 2.5f, 1u},
                                               {1.5f, inf, 0u},
                                               {1.5f, nan, 0u},
                                               {nan, 2.5f, 0u},
                                               {-inf, 2.5f, 0u},
                                               {0.0f, 0.0f, 1u}}) {
    const StepState before = {.step = ++step};
    const float of_step[2] = {loss, 7};
    backend->upload(state.get(), &before, sizeof before);
    backend->upload(summary.get(), of_step, sizeof of_step);
    backend->upload(norm.get(), &gradient, sizeof gradient);
    const StepFinishArgs args = {
        .state = state.get(), .summary = summary.get(), .norm = norm.get(), .ring = ring.get()};
    Bound bound;
#ifdef KILN_WITH_CUDA
    if (cuda) bound = bind_step_finish_cuda(args, kCapacity);
#endif
    if (!cuda) bound = bind_step_finish_cpu(args, kCapacity);
    bound.launch(backend->stream());
    StepState after;
    StepRecord records[kCapacity];
    backend->download(&after, state.get(), sizeof after);
    backend->download(records, ring.get(), sizeof records);
    EXPECT_EQ(after.finite, finite) << "loss " << loss << ", norm " << gradient;
    EXPECT_EQ(after.step, step);
    const StepRecord& record = records[step % kCapacity];
    EXPECT_EQ(record.finite, finite);
    EXPECT_EQ(record.correct, 7);
    EXPECT_TRUE(record.loss == loss || std::isnan(loss));
    EXPECT_TRUE(record.grad_norm == gradient || std::isnan(gradient));
  }
}

INSTANTIATE_TEST_SUITE_P(On, StepFinish, all_device_kinds(), device_kind_name);

// Every element: the first and the last have the same place in any order.
TEST(NnExtra, WeightsHaveTheirPlacesInTheSlab) {
  const NetworkDescription network = parse_network(R"({"name": "places", "layers": [
      {"id": "conv", "type": "conv2d", "channels": 4, "kernel": [2, 3]},
      {"id": "dw", "type": "depthwise_conv2d", "kernel": [3, 2]},
      {"id": "flat", "type": "flatten"},
      {"id": "fc", "type": "linear", "features": "classes"}]})");
  const ParameterLayout layout(infer_shapes(network, {.h = 5, .w = 6, .c = 3}, 2));
  const auto slab_of = [&](int layer) {
    const Parameter& weight = layout.parameter(layer, true);
    std::vector<float> torch(static_cast<size_t>(weight.count())), slab(torch.size()), back(torch.size());
    for (size_t i = 0; i < torch.size(); ++i) torch[i] = static_cast<float>(i);
    to_slab_order(weight, torch.data(), slab.data());
    to_torch_order(weight, slab.data(), back.data());
    EXPECT_EQ(back, torch);
    return slab;
  };
  const std::vector<float> conv = slab_of(0), dw = slab_of(1), fc = slab_of(3);
  ASSERT_EQ(conv.size(), 4u * 3 * 2 * 3);
  for (int i = 0; i < 4 * 3 * 2 * 3; ++i) {  // [K,C,R,S] to [K,R,S,C]
    const int k = i / 18, c = i / 6 % 3, r = i / 3 % 2, s = i % 3;
    EXPECT_EQ(conv[static_cast<size_t>(((k * 2 + r) * 3 + s) * 3 + c)], i);
  }
  ASSERT_EQ(dw.size(), 4u * 3 * 2);
  for (int i = 0; i < 4 * 3 * 2; ++i) {  // [C,1,R,S] to [R,S,C]
    EXPECT_EQ(dw[static_cast<size_t>(i % 6 * 4 + i / 6)], i);
  }
  // The flattened image is 2 x 3 x 4: from (channel, row, column) to (row, column, channel).
  ASSERT_EQ(fc.size(), 2u * 24);
  for (int i = 0; i < 2 * 24; ++i) {
    const int k = i / 24, c = i / 6 % 4, pixel = i % 6;
    EXPECT_EQ(fc[static_cast<size_t>(k * 24 + pixel * 4 + c)], i);
  }
}

TEST(NnExtra, ACifarFileThatIsTooLongIsRefused) {
  const fs::path folder = fs::path(test::temp_path("long"));
  fs::create_directories(folder);
  for (const char* name : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                           "data_batch_5.bin", "test_batch.bin"}) {
    std::ofstream(folder / name).close();
  }
  fs::resize_file(folder / "data_batch_1.bin", 10000 * 3073 + 1);
  test::expect_error([&] { load_cifar10(folder.string()); }, {"data_batch_1.bin", "too long"});
  fs::remove_all(folder);
}

TEST(NnExtra, BytesBehindTheLastTensorAreRefused) {
  const std::string path = test::temp_path("behind.safetensors");
  SafeTensors file;
  file.tensors.push_back(f32_tensor("w", {2}, {1, 2}));
  write_safetensors(path, file);
  EXPECT_EQ(read_safetensors(path).tensors.size(), 1u);
  std::ofstream(path, std::ios::app | std::ios::binary) << "1234";
  test::expect_error([&] { read_safetensors(path); }, {path, "damaged"});
}

}  // namespace
}  // namespace kiln
