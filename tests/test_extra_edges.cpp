// What no random data holds, for every implementation: ties, NaN and infinity, labels out of range, and draws
// that are computed a second time from the formulas of the documents. The judge's answers to these are in
// test_reference*.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "harness/execute.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"
#include "kernels/common/step_state.h"
#include "tests/support/device_test.h"
#include "tests/support/fill.h"

namespace kiln {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class Edges : public DeviceTest {
 protected:
  using Values = std::vector<float>;

  template <class Tensors>
  static auto& named(Tensors& tensors, const char* name) {
    for (auto& tensor : tensors) {
      if (tensor.spec.name == name) return tensor;
    }
    throw std::runtime_error(std::string("no tensor ") + name);
  }

  // Calls look(name of the case, output by name) for every implementation of kiln's and every dtype that it
  // takes. `set` fills the inputs, which hold small integers before.
  void each(const std::string& id, const std::string& problem_text,
            const std::function<void(HostTensors&)>& set,
            const std::function<void(const std::string&,
                                     const std::function<const HostTensor&(const char*)>&)>& look) {
    const PassInfo* pass = built_pass(id);
    if (!pass) GTEST_SKIP() << id << " is not in this build";
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      AnyProblem problem;
      try {
        problem = pass->parse(problem_text, dtype);
      } catch (const Error&) {
        if (dtype == DType::kF32) throw;
        continue;  // gradient norms are fp32 alone
      }
      HostTensors inputs = make_inputs(*pass, problem_text, dtype, 3, FillMode::kExact);
      set(inputs);
      for (const ImplInfo& impl : pass->impls(GetParam())) {
        if (impl.peer || !pass->supports(problem, device(), impl.name)) continue;
        const HostTensors outputs = execute(*pass, problem, device(), impl.name, inputs);
        look(id + " " + problem_text + " " + name_of(dtype) + " " + impl.name,
             [&](const char* name) -> const HostTensor& { return named(outputs, name); });
      }
    }
  }

  static void put(HostTensors& tensors, const char* name, const Values& values) {
    HostTensor& tensor = named(tensors, name);
    for (int64_t i = 0; i < tensor.spec.elements(); ++i) {
      tensor.as<float>()[i] = values[static_cast<size_t>(i) % values.size()];
    }
  }
  static void put_labels(HostTensors& tensors, const std::vector<int32_t>& labels) {
    std::memcpy(named(tensors, "labels").data.data(), labels.data(), labels.size() * sizeof(int32_t));
  }
};

// Of equal largest logits the first is the prediction.
TEST_P(Edges, SoftmaxCountsTheFirstOfEqualLogits) {
  for (const int classes : {2, 10, 40, 130, 700}) {
    for (const int32_t label : {0, 1, classes - 1}) {
      for (const char* pass : {"softmax_xent.fwd", "softmax_xent.fwd_bwd"}) {
        each(
            pass, "n3_c" + std::to_string(classes),
            [&](HostTensors& in) {
              put(in, "x", {0.5f});
              put_labels(in, {label, label, label});
            },
            [&](const std::string& what, const auto& out) {
              EXPECT_EQ(out("summary").template as<float>()[1], label == 0 ? 3 : 0)
                  << what << " label " << label;
            });
      }
    }
  }
}

TEST_P(Edges, SoftmaxOfALabelOutOfRangeIsNaN) {
  for (const int classes : {3, 40, 700}) {
    for (const int32_t label : {-1, classes}) {
      each(
          "softmax_xent.fwd_bwd", "n2_c" + std::to_string(classes),
          [&](HostTensors& in) {
            put_labels(in, {0, label});
          },
          [&](const std::string& what, const auto& out) {
            const float* dx = out("dx").template as<float>();
            EXPECT_FALSE(std::isnan(out("row_loss").template as<float>()[0])) << what;
            EXPECT_TRUE(std::isnan(out("row_loss").template as<float>()[1])) << what;
            EXPECT_TRUE(std::isnan(out("summary").template as<float>()[0])) << what;
            for (int k = 0; k < classes; ++k) {
              ASSERT_FALSE(std::isnan(dx[k])) << what << " class " << k;
              ASSERT_TRUE(std::isnan(dx[classes + k])) << what << " class " << k;
            }
          });
    }
  }
}

// Far from overflow after the largest is taken off, far beyond it before.
TEST_P(Edges, SoftmaxOfLargeLogitsIsFinite) {
  for (const int classes : {10, 40, 700}) {
    each(
        "softmax_xent.fwd_bwd", "n2_c" + std::to_string(classes),
        [&](HostTensors& in) {
          put(in, "x", {512, 511, -512});
          put_labels(in, {0, 1});
        },
        [&](const std::string& what, const auto& out) {
          for (int n = 0; n < 2; ++n) {
            const float loss = out("row_loss").template as<float>()[n];
            EXPECT_TRUE(loss >= 0 && loss < 1100) << what << ": " << loss;
          }
        });
  }
}

TEST_P(Edges, ActivationsKeepNaN) {
  for (const char* op : {"relu", "relu6", "gelu", "silu"}) {
    for (const char* problem : {"n1_h1_w5_c1", "n2_h4_w4_c8"}) {
      each(
          std::string(op) + ".fwd", problem,
          [&](HostTensors& in) {
            put(in, "x", {1, kNaN, -1});
          },
          [&](const std::string& what, const auto& out) {
            for (int64_t i = 0; i < out("y").spec.elements(); ++i) {
              ASSERT_EQ(std::isnan(out("y").template as<float>()[i]), i % 3 == 1) << what << " element " << i;
            }
          });
    }
  }
}

// One window of 2x2 a channel.
TEST_P(Edges, MaxPoolOfEqualValuesAndOfNaN) {
  for (const int c : {1, 8, 17}) {
    const std::string problem = "n1_h2_w2_c" + std::to_string(c) + "_r2_st2_p0_arg8";
    for (const auto& [pixels, arg] : {std::pair{Values{1, 2, 2, 0}, 1},
                                      {Values{3, 3, 3, 3}, 0},
                                      {Values{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
                                      {Values{1, kNaN, 5, kNaN}, 3},
                                      {Values{kNaN, 7, 7, 7}, 0}}) {
      each(
          "max_pool2d.fwd", problem,
          [&](HostTensors& in) {
            for (int i = 0; i < 4 * c; ++i)
              named(in, "x").as<float>()[i] = pixels[static_cast<size_t>(i / c)];
          },
          [&](const std::string& what, const auto& out) {
            for (int i = 0; i < c; ++i) {
              const float y = out("y").template as<float>()[i], wanted = pixels[static_cast<size_t>(arg)];
              ASSERT_EQ(out("arg").data[static_cast<size_t>(i)], arg) << what << " channel " << i;
              ASSERT_TRUE(y == wanted || (std::isnan(y) && std::isnan(wanted))) << what << " channel " << i;
            }
          });
    }
  }
}

TEST_P(Edges, GlobalMaxPoolOfEqualValuesAndOfNaN) {
  for (const int c : {1, 8, 17}) {
    for (const auto& [pixels, arg] : {std::pair{Values{1, 2, 2, 0, 2, 1}, 1},
                                      {Values{1, kNaN, 5, kNaN, 6, 0}, 3},
                                      {Values{4, 4, 4, 4, 4, 4}, 0}}) {
      each(
          "global_max_pool.fwd", "n1_h2_w3_c" + std::to_string(c) + "_arg32",
          [&](HostTensors& in) {
            for (int i = 0; i < 6 * c; ++i)
              named(in, "x").as<float>()[i] = pixels[static_cast<size_t>(i / c)];
          },
          [&](const std::string& what, const auto& out) {
            for (int i = 0; i < c; ++i)
              ASSERT_EQ(out("arg").template as<int32_t>()[i], arg) << what << " channel " << i;
          });
    }
  }
}

TEST_P(Edges, GradNormOfWhatIsNotFiniteIsNotFinite) {
  for (const int n : {1, 6, 1027, 70000}) {
    for (const int at : {0, n / 2, n - 1}) {
      for (const float bad : {kNaN, INFINITY, -INFINITY}) {
        each(
            "grad_norm.fwd", "n" + std::to_string(n),
            [&](HostTensors& in) { named(in, "grad").as<float>()[at] = bad; },
            [&](const std::string& what, const auto& out) {
              EXPECT_FALSE(std::isfinite(out("norm").template as<float>()[0])) << what << " element " << at;
            });
      }
    }
  }
}

// The draws of augment.h, from its text: images of one pixel value each, so that crop and cutout show as
// zeros.
TEST_P(Edges, AugmentDrawsAreThoseOfTheFormula) {
  constexpr int kN = 7, kM = 12, kSide = 9, kPad = 3, kCut = 4, kOffset = 2;
  for (const auto& [epoch, reflect] : {std::pair{0u, false}, {5u, false}, {5u, true}}) {
    const auto inside = [reflect = reflect](int at) {
      return !reflect ? at : at < 0 ? -at : at >= kSide ? 2 * kSide - 2 - at : at;
    };
    StepState step;
    step.seed = 0x123456789abcull;
    step.epoch = epoch;
    step.batch_offset = kOffset;
    each(
        "augment.fwd", std::string("n7_h9_w9_c1_m12_pad3") + (reflect ? "_reflect" : "") + "_flip_cut4",
        [&](HostTensors& in) {
          std::memcpy(named(in, "step").data.data(), &step, sizeof step);
          for (int i = 0; i < kM * kSide * kSide; ++i) {
            named(in, "images").data[static_cast<size_t>(i)] =
                static_cast<unsigned char>(1 + i % (kSide * kSide));
          }
          put(in, "mean", {0});
          put(in, "std", {1.0f / 255});
        },
        [&](const std::string& what, const auto& out) {
          for (int i = 0; i < kN; ++i) {
            const uint64_t k = static_cast<uint64_t>(epoch) * kM + kOffset + static_cast<uint64_t>(i);
            const Philox4 d = philox(step.seed, PhiloxStream::kAugment, k);
            const Philox4 e = philox(step.seed, PhiloxStream::kAugment, k, 1);
            const auto below = [](uint32_t bits, uint64_t n) { return static_cast<int>(bits * n >> 32); };
            const int dy = below(d.v[0], 2 * kPad + 1) - kPad, dx = below(d.v[1], 2 * kPad + 1) - kPad;
            const bool flip = d.v[2] >= 0x80000000u;
            const int top = below(e.v[0], kSide) - kCut / 2, left = below(e.v[1], kSide) - kCut / 2;
            for (int h = 0; h < kSide; ++h) {
              for (int w = 0; w < kSide; ++w) {
                const int row = inside(h + dy), column = inside((flip ? kSide - 1 - w : w) + dx);
                const bool cut = h >= top && h < top + kCut && w >= left && w < left + kCut;
                const bool shown = row >= 0 && row < kSide && column >= 0 && column < kSide;
                const float wanted = shown && !cut ? static_cast<float>(1 + row * kSide + column) : 0;
                ASSERT_NEAR(out("y").template as<float>()[(i * kSide + h) * kSide + w], wanted, 0.3f)
                    << what << " epoch " << epoch << " image " << i << " at " << h << "," << w;
              }
            }
          }
        });
  }
}

// Images of two pixels, 1 + j and 101 + j, so that the first tells image and side; each epoch has its order.
TEST_P(Edges, AlternateFlipShowsEachImageBothWaysInTwoEpochs) {
  constexpr int kM = 64;
  std::map<std::string, std::vector<std::set<bool>>> sides;  // of a case, of each image
  std::map<std::string, int> mirrored;                       // of a case, in the first epoch
  for (const uint32_t epoch : {6u, 7u}) {
    StepState step;
    step.seed = 0x123456789abcull;
    step.epoch = epoch;
    each(
        "augment.fwd", "n64_h1_w2_c1_m64_altflip",
        [&](HostTensors& in) {
          std::memcpy(named(in, "step").data.data(), &step, sizeof step);
          for (int j = 0; j < kM; ++j) {
            named(in, "images").data[static_cast<size_t>(2 * j)] = static_cast<unsigned char>(1 + j);
            named(in, "images").data[static_cast<size_t>(2 * j + 1)] = static_cast<unsigned char>(101 + j);
            named(in, "order").as<int32_t>()[j] = static_cast<int32_t>((j * 5 + 11 * epoch) % kM);
          }
          put(in, "mean", {0});
          put(in, "std", {1.0f / 255});
        },
        [&](const std::string& what, const auto& out) {
          sides[what].resize(kM);
          for (int i = 0; i < kM; ++i) {
            const int j = static_cast<int>((i * 5 + 11 * epoch) % kM);
            const uint32_t bit =
                philox(step.seed, PhiloxStream::kAugment, static_cast<uint64_t>(j), 2).v[0] >> 31;
            const bool flip = (bit + epoch) % 2 == 1;
            const float* pixels = out("y").template as<float>() + 2 * i;
            ASSERT_NEAR(pixels[flip ? 1 : 0], 1 + j, 0.6f) << what << " epoch " << epoch << " image " << j;
            ASSERT_NEAR(pixels[flip ? 0 : 1], 101 + j, 0.6f) << what << " epoch " << epoch << " image " << j;
            sides[what][static_cast<size_t>(j)].insert(pixels[0] > pixels[1]);
            mirrored[what] += epoch == 6 && pixels[0] > pixels[1];
          }
        });
  }
  for (const auto& [what, images] : sides) {
    for (const std::set<bool>& seen : images) EXPECT_EQ(seen.size(), 2u) << what;
    EXPECT_GT(mirrored[what], kM / 4) << what;
    EXPECT_LT(mirrored[what], 3 * kM / 4) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(On, Edges, all_device_kinds(), device_kind_name);

}  // namespace
}  // namespace kiln
