#include "tests/support/random_problems.h"

#include <algorithm>
#include <vector>

#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

constexpr double kMostMacs = 4e5, kMostMacsOfFew = 2e6;

// Image, window, stride and padding along both axes.
struct Window {
  int h, w, r, s, stride_h, stride_w, pad_h, pad_w;
  int p() const { return (h + 2 * pad_h - r) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - s) / stride_w + 1; }
  std::string image() const { return "_h" + std::to_string(h) + "_w" + std::to_string(w); }
  std::string rest() const {
    const auto both = [](int a, int b) { return std::to_string(a) + "x" + std::to_string(b); };
    return "_r" + both(r, s) + "_st" + both(stride_h, stride_w) + "_p" + both(pad_h, pad_w);
  }
};

int draw_side(Draws& d) {
  const int kind = d.below(10);
  if (kind < 3) return d.pick({4, 8, 8, 16});
  if (kind < 8) return d.pick({1, 3, 5, 7, 9, 11, 13, 15, 17});
  return d.between(1, 20);
}

int draw_channels(Draws& d) {
  const int kind = d.below(20);
  if (kind < 9) return d.pick({8, 8, 16, 24, 32, 40, 64, 72});
  if (kind < 18) return d.pick({1, 2, 3, 4, 5, 7, 10, 13, 17, 19, 31, 33});
  return d.between(1, 70);
}

int draw_images(Draws& d) { return d.pick({1, 1, 2, 2, 3, 5, 9}); }

int draw_padding(Draws& d, int window, bool pooling) {
  if (d.chance(50)) return pooling && d.chance(50) ? 0 : window / 2;
  return d.below(pooling ? window / 2 + 1 : window);
}

Window draw_window(Draws& d, bool pooling, bool roomy) {
  Window o{};
  o.r = o.s = d.pick({1, 2, 3, 3, 3, 4, 5, 7});
  if (d.chance(25)) o.s = d.pick({1, 2, 3, 5});
  o.stride_h = o.stride_w = pooling ? d.pick({1, 2, 2, 3}) : d.pick({1, 1, 1, 2, 2, 3});
  if (d.chance(20)) o.stride_w = d.pick({1, 2, 3});
  o.pad_h = draw_padding(d, o.r, pooling);
  o.pad_w = o.s == o.r && d.chance(75) ? o.pad_h : draw_padding(d, o.s, pooling);
  o.h = draw_side(d);
  o.w = d.chance(60) ? o.h : draw_side(d);
  const int room_h = roomy ? o.pad_h + o.r + 2 * o.stride_h : o.r - 2 * o.pad_h;
  const int room_w = roomy ? o.pad_w + o.s + 2 * o.stride_w : o.s - 2 * o.pad_w;
  o.h = std::max({o.h, room_h, 1});
  o.w = std::max({o.w, room_w, 1});
  return o;
}

std::string num(const char* key, long long value) { return key + std::to_string(value); }

// Draws until the problem is small enough; `one` sets the multiply-adds.
template <class One>
std::string draw_small(Draws& d, const One& one) {
  const double most = d.chance(10) ? kMostMacsOfFew : kMostMacs;
  for (;;) {
    double macs = 0;
    const std::string text = one(macs);
    if (macs <= most) return text;
  }
}

std::string draw_problem(std::string_view op, Draws& d, bool roomy) {
  const bool pooling = op == "max_pool2d" || op == "avg_pool2d";
  if (op == "conv2d" || op == "depthwise_conv2d" || pooling) {
    return draw_small(d, [&](double& macs) {
      const Window o = draw_window(d, pooling, roomy);
      const int n = draw_images(d), c = draw_channels(d), k = op == "conv2d" ? draw_channels(d) : 1;
      macs = 1.0 * n * o.p() * o.q() * c * k * o.r * o.s;
      return num("n", n) + o.image() + num("_c", c) + (op == "conv2d" ? num("_k", k) : "") + o.rest();
    });
  }
  if (op == "linear") {
    return draw_small(d, [&](double& macs) {
      const int n = d.chance(50) ? d.pick({1, 2, 7, 16, 17, 33, 64, 65}) : d.between(1, 130);
      const int c = d.chance(50) ? draw_channels(d) : d.between(1, 260);
      const int k = d.chance(50) ? d.pick({1, 10, 10, 16, 64, 100}) : d.between(1, 140);
      macs = 1.0 * n * c * k;
      return num("n", n) + num("_c", c) + num("_k", k);
    });
  }
  if (op == "softmax_xent") {
    return draw_small(d, [&](double& macs) {
      const int n = d.chance(50) ? d.pick({1, 2, 31, 32, 33, 100}) : d.between(1, 200);
      const int c = d.chance(70) ? d.pick({1, 2, 3, 10, 10, 16, 33, 100, 129}) : d.between(1, 1100);
      macs = 8.0 * n * c;
      return num("n", n) + num("_c", c);
    });
  }
  if (op == "sgd" || op == "adamw" || op == "grad_norm") {
    const int n = d.chance(50) ? d.pick({1, 3, 4, 5, 255, 256, 257, 1023, 1025, 4097}) : d.between(1, 9000);
    return num("n", n) + (op == "grad_norm" ? "" : num("_d", d.below(n + 1)));
  }
  const bool images_only = op == "batchnorm" || op == "relu" || op == "relu6" || op == "gelu" ||
                           op == "silu" || op == "add" || op == "global_avg_pool" || op == "global_max_pool";
  if (images_only || op == "augment") {
    return draw_small(d, [&](double& macs) {
      const int n = op == "augment" ? d.between(2, 9) : draw_images(d), h = draw_side(d), w = draw_side(d);
      const int c = op == "augment" ? d.pick({1, 3, 3, 4}) : draw_channels(d);
      macs = 20.0 * n * h * w * c;
      return num("n", n) + num("_h", h) + num("_w", w) + num("_c", c) +
             (op == "augment" ? num("_m", n + 1 + d.below(20)) : "");
    });
  }
  fail_usage("random_problem: no problems of op '" + std::string(op) + "'");
}

}  // namespace

uint32_t Draws::bits() { return philox(seed_, PhiloxStream::kTest, next_++, 77).v[0]; }

int Draws::below(int n) { return static_cast<int>(uniform_below(bits(), static_cast<uint32_t>(n))); }

int Draws::between(int a, int b) { return a + below(b - a + 1); }

bool Draws::chance(int percent) { return below(100) < percent; }

int Draws::pick(std::initializer_list<int> values) {
  return values.begin()[below(static_cast<int>(values.size()))];
}

std::string random_problem(std::string_view op, uint64_t seed) {
  Draws d(seed);
  return draw_problem(op, d, false);
}

std::string random_roomy_problem(std::string_view op, uint64_t seed) {
  Draws d(seed);
  return draw_problem(op, d, true);
}

std::string random_conv2d(std::string_view pass, uint64_t seed) {
  using Flags = std::vector<std::string>;
  static const Flags kFwd = {"_bias",  "_scale_bias_relu", "_scale_bias_res_relu6", "_res", "_bias_gelu",
                             "_stats", "_bias_stats"};
  static const Flags kDgrad = {"_acc"}, kWgrad = {"_bias"};
  const Flags& flags = pass == "fwd" ? kFwd : pass == "dgrad" ? kDgrad : kWgrad;
  Draws d(seed);
  const bool wide = d.chance(75), flagged = d.chance(33);
  const std::string flag = flags[static_cast<size_t>(d.below(static_cast<int>(flags.size())))];
  for (;;) {
    const std::string text = draw_problem("conv2d", d, false);
    const auto eighths = [&](const char* key) { return std::stoi(text.substr(text.find(key) + 2)) % 8 == 0; };
    if (!wide || (eighths("_c") && eighths("_k"))) return text + (flagged ? flag : "");
  }
}

}  // namespace kiln
