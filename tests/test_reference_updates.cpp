// The judge judged, as in test_reference.cpp: elementwise ops, loss, optimizer, augmentation.
#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "kernels/common/error.h"
#include "kernels/common/step_state.h"
#include "tests/support/reference.h"

namespace kiln {
namespace {

// Elementwise -------------------------------------------------------------------------------------

TEST(Relu, HandWorked) {
  REQUIRE_PASS("relu.fwd");
  const double nan = std::nan("");
  const Values y = naive("relu.fwd", "n1_c5", {{-1, 0, 2, nan, -0.0}})["y"];
  EXPECT_EQ((Values{y[0], y[1], y[2], y[4]}), (Values{0, 0, 2, 0}));
  EXPECT_TRUE(std::isnan(y[3]));
  EXPECT_EQ(naive("relu.bwd", "n1_c3", {{5, 6, 7}, {0, 1, 0}})["dx"], (Values{0, 6, 0}));
}

TEST(Add, HandWorked) {
  REQUIRE_PASS("add.fwd");
  EXPECT_EQ(naive("add.fwd", "n1_c2", {{1, 2}, {10, 20}})["y"], (Values{11, 22}));
  auto out = naive("add.bwd", "n1_c2", {{3, 4}});
  EXPECT_EQ(out["da"], (Values{3, 4}));
  EXPECT_EQ(out["db"], (Values{3, 4}));
}

// softmax_xent ------------------------------------------------------------------------------------

double softmax_loss(const Values& x, const Values& labels, size_t c, double smoothing) {
  double loss = 0;
  const size_t n = labels.size();
  for (size_t i = 0; i < n; ++i) {
    double sum = 0;
    for (size_t k = 0; k < c; ++k) sum += std::exp(x[i * c + k]);
    for (size_t k = 0; k < c; ++k) {
      const double target =
          smoothing / static_cast<double>(c) + (static_cast<double>(k) == labels[i] ? 1 - smoothing : 0);
      loss -= target * (x[i * c + k] - std::log(sum));
    }
  }
  return loss / static_cast<double>(n);
}

TEST(SoftmaxXent, HandWorked) {
  REQUIRE_PASS("softmax_xent.fwd");
  auto out = naive("softmax_xent.fwd_bwd", "n2_c2", {{0, 0, 1000, -1000}, {0, 1}});
  expect_near(out["row_loss"], {std::log(2.0), 2000}, 1e-6, "row_loss");
  expect_near(out["summary"], {(std::log(2.0) + 2000) / 2, 1}, 1e-6,
              "summary");  // the first largest of {0, 0} is 0
  expect_near(out["dx"], {-0.25, 0.25, 0.5, -0.5}, 1e-6, "dx");
  EXPECT_EQ(naive("softmax_xent.fwd", "n1_c3", {{5, 5, 5}, {1}})["summary"][1], 0);
}

TEST(SoftmaxXent, LabelOutOfRangeIsNaN) {
  REQUIRE_PASS("softmax_xent.fwd_bwd");
  for (const double label : {-1.0, 3.0}) {
    auto out = naive("softmax_xent.fwd_bwd", "n2_c3", {{1, 2, 3, 4, 5, 6}, {0, label}});
    EXPECT_FALSE(std::isnan(out["row_loss"][0]));
    EXPECT_TRUE(std::isnan(out["row_loss"][1]));
    EXPECT_TRUE(std::isnan(out["summary"][0]));
    EXPECT_FALSE(std::isnan(out["dx"][0]));
    for (int k = 3; k < 6; ++k) EXPECT_TRUE(std::isnan(out["dx"][k]));
  }
}

TEST(SoftmaxXent, CentralDifferences) {
  REQUIRE_PASS("softmax_xent.fwd_bwd");
  const Values x = random_values(4 * 5, 1), labels = {0, 4, 2, 2};
  for (const auto& [text, smoothing] :
       {std::pair{"n4_c5", 0.0}, {"n4_c5_ls0.1", static_cast<double>(0.1f)}}) {
    auto out = naive("softmax_xent.fwd_bwd", text, {x, labels});
    const auto loss = [&, s = smoothing](const Values& v) { return Values{softmax_loss(v, labels, 5, s)}; };
    EXPECT_NEAR(out["summary"][0], loss(x)[0], 1e-6) << text;
    expect_near(out["dx"], gradient(loss, x, {1}, 1e-5), 1e-6, text);
    EXPECT_EQ(naive("softmax_xent.fwd", text, {x, labels})["row_loss"], out["row_loss"]);
  }
}

// optimizer ---------------------------------------------------------------------------------------

Values step_bytes(const StepState& state) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&state);
  return Values(bytes, bytes + sizeof state);
}

TEST(Sgd, HandWorked) {
  REQUIRE_PASS("sgd.step");
  StepState state;
  state.lr = 0.5f;
  // grad {1, 1}, param {8, 8}, velocity {4, 4}; momentum 0.5, decay 0.25 on the first.
  auto out = naive("sgd.step", "n2_d1_m0.5_wd0.25", {step_bytes(state), {1, 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["velocity"], (Values{0.5 * 4 + 1 + 2, 0.5 * 4 + 1}));
  EXPECT_EQ(out["param"], (Values{8 - 0.5 * 5, 8 - 0.5 * 3}));
  out = naive("sgd.step", "n2_d1_m0.5_wd0.25_nesterov", {step_bytes(state), {1, 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{8 - 0.5 * (3 + 0.5 * 5), 8 - 0.5 * (1 + 0.5 * 3)}));
  out = naive("sgd.step", "n2", {step_bytes(state), {1, -2}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{7.5, 9}));
  state.finite = 0;
  out = naive("sgd.step", "n2_d1_m0.5_wd0.25", {step_bytes(state), {std::nan(""), 1}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{8, 8}));
  EXPECT_EQ(out["velocity"], (Values{4, 4}));
}

TEST(Sgd, Clipping) {
  REQUIRE_PASS("sgd.step");
  StepState state;
  state.lr = 0.5f;
  // Norm 5, largest 2.5: half the gradient (but for 1e-6 in the divisor), before decay is added.
  auto out =
      naive("sgd.step", "n2_d1_m0.5_wd0.25_clip2.5", {step_bytes(state), {3, -4}, {5}, {8, 8}, {4, 4}});
  expect_near(out["velocity"], {0.5 * 4 + 1.5 + 2, 0.5 * 4 - 2}, 1e-6, "velocity");
  expect_near(out["param"], {8 - 0.5 * 5.5, 8}, 1e-6, "param");
  // A norm below the limit changes nothing.
  out = naive("sgd.step", "n2_clip10", {step_bytes(state), {3, -4}, {5}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{6.5, 10}));
  state.finite = 0;
  out = naive("sgd.step", "n2_clip1", {step_bytes(state), {3, INFINITY}, {INFINITY}, {8, 8}, {4, 4}});
  EXPECT_EQ(out["param"], (Values{8, 8}));
}

// PyTorch's AdamW (torch.optim.AdamW, no amsgrad) in double.
struct AdamwLoop {
  double beta1, beta2, eps, weight_decay;
  Values w, m, v;
  void step(const Values& g, double lr, int t, size_t decayed) {
    for (size_t i = 0; i < w.size(); ++i) {
      if (i < decayed) w[i] -= lr * weight_decay * w[i];
      m[i] += (g[i] - m[i]) * (1 - beta1);
      v[i] = v[i] * beta2 + g[i] * g[i] * (1 - beta2);
      const double bias1 = 1 - std::pow(beta1, t), bias2 = 1 - std::pow(beta2, t);
      const double denominator = std::sqrt(v[i]) / std::sqrt(bias2) + eps;
      w[i] -= lr / bias1 * m[i] / denominator;
    }
  }
};

TEST(Adamw, ThreeStepsAsPyTorch) {
  REQUIRE_PASS("adamw.step");
  struct Variant {
    const char* text;
    double beta1, beta2, eps, weight_decay;
    size_t decayed;
  };
  const size_t n = 7;
  for (const Variant& v : {Variant{"n7", 0.9f, 0.999f, 1e-8f, 0, 0},
                           {"n7_d4_wd0.1", 0.9f, 0.999f, 1e-8f, 0.1f, 4},
                           {"n7_d7_ba0.5_bb0.75_eps0.01_wd0.5", 0.5, 0.75, 0.01f, 0.5, 7},
                           {"n7_ba0_bb0.5", 0, 0.5, 1e-8f, 0, 0}}) {
    AdamwLoop loop{v.beta1, v.beta2, v.eps, v.weight_decay, random_values(n, 1), Values(n), Values(n)};
    Values w = loop.w, first(n), second(n);
    for (int t = 1; t <= 3; ++t) {
      const Values g = random_values(n, 10 + static_cast<uint64_t>(t));
      StepState state;
      state.lr = 0.125f / static_cast<float>(t);
      state.step = static_cast<uint32_t>(t - 1);
      loop.step(g, state.lr, t, v.decayed);
      auto out = naive("adamw.step", v.text, {step_bytes(state), g, w, first, second});
      w = out["param"];
      first = out["first_moment"];
      second = out["second_moment"];
      expect_near(w, loop.w, 1e-6, v.text + std::string(" param"));
      expect_near(first, loop.m, 1e-6, v.text + std::string(" first_moment"));
      expect_near(second, loop.v, 1e-6, v.text + std::string(" second_moment"));
    }
  }
}

TEST(Adamw, HandWorked) {
  REQUIRE_PASS("adamw.step");
  StepState state;
  state.lr = 0.5f;
  // The first step from zero moments is lr * sign(g), whatever |g|, after decay.
  auto out = naive("adamw.step", "n3_d1_wd0.5",
                   {step_bytes(state), {100, -1e-3, 2}, {8, 8, 8}, {0, 0, 0}, {0, 0, 0}});
  expect_near(out["param"], {8 * 0.75 - 0.5, 8.5, 7.5}, 1e-5, "param");
  // Clipping scales the moments: norm 5, largest 2.5.
  out = naive("adamw.step", "n2_ba0.5_bb0.5_clip2.5",
              {step_bytes(state), {3, -4}, {5}, {8, 8}, {0, 0}, {0, 0}});
  expect_near(out["first_moment"], {0.75, -1}, 1e-6, "first_moment");
  expect_near(out["second_moment"], {1.125, 2}, 1e-6, "second_moment");
  expect_near(out["param"], {7.5, 8.5}, 1e-6, "param");
  state.finite = 0;
  out = naive("adamw.step", "n2", {step_bytes(state), {std::nan(""), 1}, {8, 8}, {4, 4}, {2, 2}});
  EXPECT_EQ(out["param"], (Values{8, 8}));
  EXPECT_EQ(out["first_moment"], (Values{4, 4}));
  EXPECT_EQ(out["second_moment"], (Values{2, 2}));
}

TEST(Adamw, BiasCorrectionsOfLateSteps) {
  REQUIRE_PASS("adamw.step");
  const PassInfo& pass = find_pass("adamw.step");
  const AnyProblem problem = pass.parse("n5_d2_wd0.01", DType::kF32);
  for (const uint32_t step : {0u, 1u, 99u, 4095u, 123456u, 4294967295u}) {
    HostTensors tensors;
    for (const TensorSpec& spec : pass.tensors(problem)) tensors.emplace_back(spec);
    StepState state;
    state.lr = 0.125f;
    state.step = step;
    std::memcpy(tensors[0].data.data(), &state, sizeof state);
    for (const size_t i : {1u, 3u, 4u, 5u}) {
      const Values values = random_values(5, 20 + i, i == 5);
      for (size_t j = 0; j < 5; ++j) tensors[i].as<float>()[j] = static_cast<float>(values[j]);
    }
    const HostTensors want = execute(pass, problem, cpu_device(), "cpu_naive", tensors);
    const HostTensors got = execute(pass, problem, cpu_device(), "cpu_fast", tensors);
    for (int j = 0; j < 5; ++j) {
      const float w = want[3].as<float>()[j];
      EXPECT_NEAR(got[3].as<float>()[j], w, 1e-6 * std::max(1.0f, std::abs(w))) << step;
    }
  }
}

TEST(Updates, ProblemStrings) {
  REQUIRE_PASS("adamw.step");
  const auto text = [](const char* id, const char* problem) {
    return find_pass(id).parse(problem, DType::kF32).text;
  };
  for (const char* same : {"n9_d4_m0.9_wd0.01_nesterov_clip0.5", "n9_clip1"})
    EXPECT_EQ(text("sgd.step", same), same);
  for (const char* same : {"n9", "n9_d4_ba0.8_bb0.95_eps0.000001_wd0.01_clip1"}) {
    EXPECT_EQ(text("adamw.step", same), same);
  }
  EXPECT_EQ(text("adamw.step", "n9_ba0.9_bb0.999_eps1e-08"), "n9");
  for (const char* bad : {"n9_ba1", "n9_bb1.5", "n9_eps-1", "n9_clip-1", "n9_d10", "n9_m0.9"}) {
    EXPECT_THROW(text("adamw.step", bad), Error) << bad;
  }
}

TEST(GradNorm, HandWorked) {
  REQUIRE_PASS("grad_norm.fwd");
  EXPECT_EQ(naive("grad_norm.fwd", "n4", {{3, 0, -4, 0}})["norm"], (Values{5}));
  EXPECT_FALSE(std::isfinite(naive("grad_norm.fwd", "n2", {{1, std::nan("")}})["norm"][0]));
  EXPECT_FALSE(std::isfinite(naive("grad_norm.fwd", "n2", {{1, INFINITY}})["norm"][0]));
}

// augment -----------------------------------------------------------------------------------------

TEST(Augment, PlainLoader) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  state.batch_offset = 1;
  // Three 1x2x1 images, order 2, 0, 1, from offset 1: images 0 and 1.
  auto out = naive("augment.fwd", "n2_h1_w2_c1_m3_cs2",
                   {step_bytes(state), {0, 255, 51, 102, 1, 2}, {7, 8, 9}, {2, 0, 1}, {0.5}, {0.25}});
  expect_near(out["y"], {-2, 0, 2, 0, -1.2, 0, -0.4, 0}, 1e-6, "y");
  EXPECT_EQ(out["y_labels"], (Values{7, 8}));
}

// `padding`: a row (column) outside an image of `size` rows, as one inside; -1: zero. `most`: moves that may
// look the same.
void expect_shifted_or_mirrored(int pad, const std::string& fields, int (*padding)(int at, int size),
                                int most) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  state.seed = 7;
  const int n = 16, h = 6, w = 5;
  Values images, labels, order;
  for (int i = 0; i < n * h * w; ++i) images.push_back(1 + i % (h * w));  // pixel value tells the position
  for (int i = 0; i < n; ++i) {
    labels.push_back(i);
    order.push_back(n - 1 - i);
  }
  auto out = naive("augment.fwd", "n16_h6_w5_c1_m16_pad" + std::to_string(pad) + fields,
                   {step_bytes(state), images, labels, order, {0}, {1.0 / 255}});
  const auto inside = [&](int at, int size) { return at < 0 || at >= size ? padding(at, size) : at; };
  std::set<std::tuple<int, int, bool>> moves;
  for (int i = 0; i < n; ++i) {
    EXPECT_EQ(out["y_labels"][i], order[i]);
    int found = 0;
    for (int dy = -pad; dy <= pad; ++dy) {
      for (int dx = -pad; dx <= pad; ++dx) {
        for (const bool flip : {false, true}) {
          bool same = true;
          for (int y = 0; y < h && same; ++y) {
            for (int x = 0; x < w && same; ++x) {
              const int sy = inside(y + dy, h), sx = inside((flip ? w - 1 - x : x) + dx, w);
              const double want = sy < 0 || sx < 0 ? 0 : 1 + sy * w + sx;
              same = std::abs(out["y"][(i * h + y) * w + x] - want) < 1e-3;
            }
          }
          if (same) moves.insert({dy, dx, flip});
          found += same;
        }
      }
    }
    EXPECT_GE(found, 1) << "image " << i;
    EXPECT_LE(found, most) << "image " << i;
  }
  EXPECT_GT(moves.size(), 8u);  // the draws differ between images
}

TEST(Augment, EveryPixelIsAShiftedOrMirroredOne) {
  expect_shifted_or_mirrored(
      2, "_flip", [](int, int) { return -1; }, 1);
}

// Row -1 is row 1, row h is row h-2: walking out of the image is walking back in, the border taken once.
TEST(Augment, ReflectedPaddingWalksBackIn) {
  const auto walk = [](int at, int size) {
    int row = 0, step = at < 0 ? -1 : 1;
    for (int i = 0; i < std::abs(at); ++i) {
      if (row + step < 0 || row + step >= size) step = -step;
      row += step;
    }
    return row;
  };
  EXPECT_EQ(walk(-1, 5), 1);
  EXPECT_EQ(walk(5, 5), 3);
  for (const int pad : {2, 4}) {  // columns moved by 4 either way are the five mirrored
    expect_shifted_or_mirrored(pad, "_reflect_flip", walk, 3);
  }
}

TEST(Augment, ProblemStrings) {
  REQUIRE_PASS("augment.fwd");
  const auto text = [](const char* problem) {
    return find_pass("augment.fwd").parse(problem, DType::kF32).text;
  };
  for (const char* same : {"n2_h4_w4_c3_m5", "n2_h4_w4_c3_m5_pad1_flip", "n2_h4_w4_c3_m5_altflip_cut2_cs8",
                           "n2_h4_w5_c3_m5_pad3_reflect_flip"}) {
    EXPECT_EQ(text(same), same);
  }
  for (const char* bad : {"n2_h4_w4_c3_m5_flip_altflip", "n2_h4_w4_c3_m5_altflip1", "n2_h4_w4_c3_m5_reflect",
                          "n2_h4_w5_c3_m5_pad4_reflect", "n2_h5_w4_c3_m5_pad4_reflect"}) {
    EXPECT_THROW(text(bad), Error) << bad;
  }
}

TEST(Augment, CutoutZeroesOneSquare) {
  REQUIRE_PASS("augment.fwd");
  StepState state;
  const int n = 32, side = 8, cut = 4;
  Values images(n * side * side, 255), labels(n, 0), order;
  for (int i = 0; i < n; ++i) order.push_back(i);
  auto out =
      naive("augment.fwd", "n32_h8_w8_c1_m32_cut4", {step_bytes(state), images, labels, order, {0}, {1}});
  for (int i = 0; i < n; ++i) {
    int zeros = 0;
    for (int j = 0; j < side * side; ++j) zeros += out["y"][i * side * side + j] == 0;
    EXPECT_GE(zeros, cut / 2 * cut / 2);  // clipped at a corner
    EXPECT_LE(zeros, cut * cut);
  }
}

}  // namespace
}  // namespace kiln
