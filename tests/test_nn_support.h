// Small networks and data for the engine's tests.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/common/error.h"
#include "kernels/common/philox.h"
#include "nn/probe.h"
#include "nn/trainer.h"

namespace kiln::test {

// Expects that `work` throws a kiln::Error whose text has every one of `parts`.
template <class Work>
void expect_error(const Work& work, const std::vector<std::string>& parts) {
  try {
    work();
  } catch (const Error& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "'" << part << "' in: " << error.what();
    }
    return;
  }
  FAIL() << "no error; one with '" << (parts.empty() ? "" : parts[0]) << "' was expected";
}

inline float draw_uniform(uint64_t seed, uint64_t index) {
  return 2 * uniform01(philox(seed, PhiloxStream::kTest, index).v[0]) - 1;
}

inline std::vector<float> random_images(size_t count, uint64_t seed) {
  std::vector<float> images(count);
  for (size_t i = 0; i < count; ++i) images[i] = 1.7f * draw_uniform(seed, i);
  return images;
}

inline std::vector<int32_t> some_labels(int count, int classes) {
  std::vector<int32_t> labels(count);
  for (int i = 0; i < count; ++i) labels[i] = (i * 7 + 3) % classes;
  return labels;
}

// Random uint8 images whose label can be learnt: one channel of one corner is brighter.
inline DataPair tiny_data(int train_count, int test_count, int side = 8, int classes = 4) {
  DataPair pair;
  for (Dataset* d : {&pair.train, &pair.test}) {
    const int count = d == &pair.train ? train_count : test_count;
    *d = {.name = "tiny",
          .height = side,
          .width = side,
          .channels = 3,
          .classes = classes,
          .images = {},
          .labels = {}};
    for (int i = 0; i < count; ++i) {
      const int label = i % classes;
      d->labels.push_back(label);
      for (int at = 0; at < side * side * 3; ++at) {
        const Philox4 draw = philox(d == &pair.train ? 11 : 12, PhiloxStream::kTest, 1000ull * i + at);
        const bool corner = (at / 3 / side < side / 2) == (label % 2 == 0) && at % 3 == label / 2;
        d->images.push_back(static_cast<uint8_t>(draw.v[0] % 128 + (corner ? 100 : 0)));
      }
    }
  }
  for (int c = 0; c < classes; ++c) pair.class_names.push_back(std::to_string(c));
  pair.mean = {0.3f, 0.31f, 0.29f};
  pair.std = {0.2f, 0.21f, 0.19f};
  return pair;
}

// A residual network in two strengths: with kinks (relu, max pooling) and without.
inline NetworkDescription tiny_network(bool kinks) {
  const std::string relu = kinks ? R"({"id": "act1", "type": "relu"},)" : "";
  const std::string relu2 = kinks ? R"({"id": "act2", "type": "relu"},)" : "";
  const std::string from = kinks ? "act1" : "bn1";
  const std::string pool = kinks ? R"({"id": "pool", "type": "max_pool2d", "kernel": 2},)" : "";
  return parse_network(R"({"name": "tiny", "layers": [
      {"id": "conv1", "type": "conv2d", "channels": 6, "kernel": 3, "padding": 1},
      {"id": "bn1", "type": "batchnorm"},)" +
                       relu + R"(
      {"id": "conv2", "type": "conv2d", "channels": 5, "kernel": 3, "stride": 2, "padding": 1, "bias": true},
      {"id": "bn2", "type": "batchnorm"},
      {"id": "short", "type": "conv2d", "channels": 5, "kernel": 1, "stride": 2, "inputs": ")" +
                       from + R"("},
      {"id": "add", "type": "add", "inputs": ["bn2", "short"]},)" +
                       relu2 + R"(
      {"id": "conv3", "type": "conv2d", "channels": 5, "kernel": [3, 1], "padding": [1, 0]},
      {"id": "add2", "type": "add", "inputs": ["conv3", ")" +
                       (kinks ? "act2" : "add") + R"("]},)" + pool + R"(
      {"id": "flat", "type": "flatten"},
      {"id": "fc1", "type": "linear", "features": 7},
      {"id": "fc2", "type": "linear", "features": "classes"}]})");
}

// Depthwise convolutions, every activation, a residual behind a batchnorm and the other pools, in two
// strengths. The second convolution's batchnorm takes its input again as the residual.
inline NetworkDescription tiny_mobile_network(bool kinks) {
  const std::string act = kinks ? "relu6" : "gelu", act2 = kinks ? "relu6" : "silu";
  const std::string pool = kinks ? "global_max_pool" : "global_avg_pool";
  return parse_network(R"({"name": "tiny_mobile", "layers": [
      {"id": "stem", "type": "conv2d", "channels": 6, "kernel": 3, "padding": 1},
      {"id": "bn0", "type": "batchnorm"},
      {"id": "act0", "type": ")" +
                       act + R"("},
      {"id": "dw", "type": "depthwise_conv2d", "kernel": 3, "stride": 2, "padding": 1},
      {"id": "bn1", "type": "batchnorm"},
      {"id": "act1", "type": ")" +
                       act2 + R"("},
      {"id": "dw2", "type": "depthwise_conv2d", "kernel": [3, 1], "padding": [1, 0], "bias": true},
      {"id": "bn2", "type": "batchnorm"},
      {"id": "join", "type": "add", "inputs": ["act1", "bn2"]},
      {"id": "act2", "type": ")" +
                       act + R"("},
      {"id": "pw", "type": "conv2d", "channels": 6, "kernel": 1},
      {"id": "bn3", "type": "batchnorm"},
      {"id": "join2", "type": "add", "inputs": ["bn3", "pw"]},
      {"id": "avg", "type": "avg_pool2d", "kernel": 3, "stride": 2, "padding": 1},
      {"id": "act3", "type": "silu"},
      {"id": "pool", "type": ")" +
                       pool + R"("},
      {"id": "fc", "type": "linear", "features": "classes"}]})");
}

// Pools behind batchnorms, for 8x8 images: one behind a relu that drops an odd row and column, one behind a
// batchnorm alone, one whose relu two layers read.
inline NetworkDescription tiny_pooled_network() {
  return parse_network(R"({"name": "tiny_pooled", "layers": [
      {"id": "conv1", "type": "conv2d", "channels": 6, "kernel": 2},
      {"id": "bn1", "type": "batchnorm"},
      {"id": "act1", "type": "relu"},
      {"id": "pool1", "type": "max_pool2d", "kernel": 2},
      {"id": "conv2", "type": "conv2d", "channels": 9, "kernel": 3, "padding": 2},
      {"id": "bn2", "type": "batchnorm"},
      {"id": "act2", "type": "relu6"},
      {"id": "conv3", "type": "conv2d", "channels": 9, "kernel": 1},
      {"id": "join", "type": "add", "inputs": ["conv3", "act2"]},
      {"id": "bn3", "type": "batchnorm"},
      {"id": "pool3", "type": "max_pool2d", "kernel": 2},
      {"id": "flat", "type": "flatten"},
      {"id": "fc", "type": "linear", "features": "classes"}]})");
}

// Without batchnorms, for 8x8 images: activations and pools that alone read a convolution or are alone read
// by one, one that two read, and a pool that drops an odd row and column.
inline NetworkDescription tiny_plain_network() {
  return parse_network(R"({"name": "tiny_plain", "layers": [
      {"id": "conv1", "type": "conv2d", "channels": 6, "kernel": 3, "padding": 1, "bias": true},
      {"id": "act1", "type": "relu"},
      {"id": "conv2", "type": "conv2d", "channels": 9, "kernel": 3, "bias": true},
      {"id": "act2", "type": "relu6"},
      {"id": "pool2", "type": "max_pool2d", "kernel": 2},
      {"id": "conv3", "type": "conv2d", "channels": 6, "kernel": 3, "padding": 1},
      {"id": "act3", "type": "relu"},
      {"id": "conv4", "type": "conv2d", "channels": 6, "kernel": 1, "bias": true},
      {"id": "join", "type": "add", "inputs": ["conv4", "act3"]},
      {"id": "act4", "type": "relu6"},
      {"id": "conv5", "type": "conv2d", "channels": 10, "kernel": 3, "padding": 1, "bias": true},
      {"id": "pool5", "type": "max_pool2d", "kernel": 2},
      {"id": "flat", "type": "flatten"},
      {"id": "fc", "type": "linear", "features": "classes"}]})");
}

inline double norm_of(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += static_cast<double>(v) * v;
  return std::sqrt(sum);
}

inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum);
}

// Each gradient's error is at most `bound` of max(its norm, 1 % of the largest gradient norm).
inline void expect_close_gradients(const StepProbe::Tensors& got, const StepProbe::Tensors& wanted,
                                   double bound) {
  double largest = 0;
  for (const auto& [name, values] : wanted) largest = std::max(largest, norm_of(values));
  for (const auto& [name, values] : wanted) {
    const double error = distance(got.at(name), values);
    EXPECT_LE(error, bound * std::max(norm_of(values), 0.01 * largest))
        << name << ", norm " << norm_of(values);
  }
}

inline std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

// A path in a folder of this test case's own.
inline std::string temp_path(const std::string& name) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const auto folder = std::filesystem::path(::testing::TempDir()) /
                      (std::string("kiln_") + test->test_suite_name() + "_" + test->name());
  std::filesystem::create_directories(folder);
  return (folder / name).string();
}

}  // namespace kiln::test
