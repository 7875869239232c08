// The built-in data set: ten kinds of figure, drawn at a random place, size, phase and colour over a random
// textured background. Light figures on dark ground are as frequent as dark ones on light, so that the mean
// of a pixel is the same in every class and a linear classifier learns next to nothing. No class turns into
// another when mirrored.
//
// Everything is integer arithmetic on Philox draws: the same bits on every machine, and an image depends on
// the seed, the split and its index alone, not on how many are made.
#include <array>
#include <cstdlib>

#include "data/channel_stats.h"
#include "data/dataset.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

constexpr int kSide = 32, kChannels = 3, kClasses = 10;
constexpr size_t kImageBytes = kSide * kSide * kChannels;
constexpr long long kMostImages = 1000000;
constexpr uint64_t kTestImages = uint64_t{1} << 32;  // first counter of the test split
constexpr int kUnit = 8;                             // lengths are in eighths of a pixel
constexpr int kSamples = 4;                          // by 4 a pixel, at odd eighths

enum Figure { kDisc, kRing, kSquare, kTriangle, kCross, kRows, kColumns, kDiagonals, kChecker, kDots };

// Draws of one image, in order.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t image) : seed_(seed), image_(image) {}
  uint32_t bits() {
    if (used_ == 4) {
      block_ = philox(seed_, PhiloxStream::kData, image_, sub_++);
      used_ = 0;
    }
    return block_.v[used_++];
  }
  // Whole number in [low, high].
  int between(int low, int high) {
    return low + static_cast<int>(uniform_below(bits(), static_cast<uint32_t>(high - low + 1)));
  }

 private:
  uint64_t seed_, image_;
  uint32_t sub_ = 0;
  int used_ = 4;
  Philox4 block_{};
};

struct Shape {
  int figure;
  int x, y;    // centre
  int size;    // half the extent
  int period;  // of stripes (one band), checker (one field) and dots (pitch)
  int phase_x, phase_y;
  int sign;  // 1 or -1: triangle's tip up or down, slope of the diagonals
};

Shape draw_shape(int figure, Draws& draws) {
  Shape s{};
  s.figure = figure;
  const bool textured = figure >= kRows;
  s.size = textured ? draws.between(9 * kUnit, 13 * kUnit) : draws.between(7 * kUnit, 12 * kUnit);
  s.x = draws.between(s.size, kSide * kUnit - s.size);
  s.y = draws.between(s.size, kSide * kUnit - s.size);
  s.period = figure == kDots        ? draws.between(6 * kUnit, 7 * kUnit)
             : figure == kChecker   ? draws.between(3 * kUnit, 5 * kUnit)
             : figure == kDiagonals ? draws.between(3 * kUnit, 5 * kUnit)
                                    : draws.between(2 * kUnit, 4 * kUnit);
  // Far above any distance, so that the quotients below are of positive numbers.
  s.phase_x = 1024 * s.period + draws.between(0, 2 * s.period - 1);
  s.phase_y = 1024 * s.period + draws.between(0, 2 * s.period - 1);
  s.sign = draws.between(0, 1) * 2 - 1;
  return s;
}

// Is the point (u, v), relative to the centre, part of the figure?
bool covers(const Shape& s, int u, int v) {
  const int size = s.size, square = u * u + v * v, au = std::abs(u), av = std::abs(v);
  const auto band = [&](int along) { return along / s.period % 2 == 0; };
  const auto from_dot = [&](int along) { return along % s.period - s.period / 2; };
  switch (s.figure) {
    case kDisc:
      return square <= size * size;
    case kRing:
      return square <= size * size && 64 * square > 25 * size * size;  // inner radius 5/8
    case kSquare:
      return au <= size * 7 / 8 && av <= size * 7 / 8;
    case kTriangle:
      return av <= size && 2 * au <= size + s.sign * v;
    case kCross:
      return (au <= size && av <= size / 4) || (av <= size && au <= size / 4);
    default:
      break;
  }
  if (au > size || av > size) return false;
  switch (s.figure) {
    case kRows:
      return band(v + s.phase_y);
    case kColumns:
      return band(u + s.phase_x);
    case kDiagonals:
      return band(u + s.sign * v + s.phase_x);
    case kChecker:
      return band(u + s.phase_x) == band(v + s.phase_y);
    default: {
      const int du = from_dot(u + s.phase_x), dv = from_dot(v + s.phase_y);
      return 9 * (du * du + dv * dv) <= s.period * s.period;  // radius: a third of the pitch
    }
  }
}

// Samples of the pixel that the figure covers, 0 to 16.
int coverage(const Shape& s, int row, int column) {
  int count = 0;
  for (int i = 0; i < kSamples; ++i) {
    for (int j = 0; j < kSamples; ++j) {
      count += covers(s, column * kUnit + 2 * j + 1 - s.x, row * kUnit + 2 * i + 1 - s.y);
    }
  }
  return count;
}

using Colour = std::array<int, kChannels>;

Colour draw_colour(Draws& draws) {
  return {draws.between(16, 239), draws.between(16, 239), draws.between(16, 239)};
}

int brightness(const Colour& c) { return (c[0] + 2 * c[1] + c[2]) / 4; }

// Low-frequency texture: random values at the corners of 8 x 8 pixel cells, bilinear between them.
class Texture {
 public:
  static constexpr int kAmplitude = 24;
  explicit Texture(Draws& draws) {
    for (int& node : nodes_) node = draws.between(0, 2 * kAmplitude);
  }
  int at(int row, int column, int channel) const {
    const int fi = row % kCell, fj = column % kCell;
    const auto node = [&](int di, int dj) {
      return nodes_[static_cast<size_t>(((row / kCell + di) * kNodes + column / kCell + dj) * kChannels +
                                        channel)];
    };
    const int top = node(0, 0) * (kCell - fj) + node(0, 1) * fj;
    const int bottom = node(1, 0) * (kCell - fj) + node(1, 1) * fj;
    return (top * (kCell - fi) + bottom * fi) / (kCell * kCell) - kAmplitude;
  }

 private:
  static constexpr int kCell = 8, kNodes = kSide / kCell + 1;
  std::array<int, kNodes * kNodes * kChannels> nodes_;
};

void draw_image(int figure, uint64_t seed, uint64_t image, uint8_t* pixels) {  // pixels: [32,32,3]
  constexpr int kLeastContrast = 56, kNoise = 16;
  constexpr int kWhole = kSamples * kSamples;
  Draws draws(seed, image);
  const Shape shape = draw_shape(figure, draws);
  Colour ground, ink;
  do {
    ground = draw_colour(draws);
    ink = draw_colour(draws);
  } while (std::abs(brightness(ground) - brightness(ink)) < kLeastContrast);
  const Texture texture(draws);
  for (int row = 0; row < kSide; ++row) {
    for (int column = 0; column < kSide; ++column) {
      const int inked = coverage(shape, row, column);
      const uint32_t noise = draws.bits();  // a byte a channel
      for (int c = 0; c < kChannels; ++c) {
        const size_t channel = static_cast<size_t>(c);
        const int mixed = (ground[channel] * (kWhole - inked) + ink[channel] * inked) / kWhole;
        const int speckle = static_cast<int>(noise >> (8 * c) & 0xff) * (2 * kNoise + 1) / 256 - kNoise;
        const int value = mixed + texture.at(row, column, c) + speckle;
        *pixels++ = static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
      }
    }
  }
}

Dataset make_split(long long count, uint64_t seed, uint64_t first_image) {
  Dataset data;
  data.name = "builtin";
  data.height = data.width = kSide;
  data.channels = kChannels;
  data.classes = kClasses;
  data.images.resize(static_cast<size_t>(count) * kImageBytes);
  data.labels.resize(static_cast<size_t>(count));
#pragma omp parallel for schedule(static)
  for (long long i = 0; i < count; ++i) {
    const size_t index = static_cast<size_t>(i);
    const int label = static_cast<int>(i % kClasses);
    data.labels[index] = label;
    draw_image(label, seed, first_image + index, data.images.data() + index * kImageBytes);
  }
  return data;
}

void require_count(const char* split, long long count) {
  if (count < 1 || count > kMostImages) {
    fail_usage("built-in data: " + std::to_string(count) + " " + split + " images asked for, must be 1 to " +
               std::to_string(kMostImages));
  }
}

}  // namespace

DataPair make_builtin_data(long long train_count, long long test_count, uint64_t seed) {
  require_count("training", train_count);
  require_count("test", test_count);
  DataPair data;
  data.train = make_split(train_count, seed, 0);
  data.test = make_split(test_count, seed, kTestImages);
  data.class_names = {"disc",
                      "ring",
                      "square",
                      "triangle",
                      "cross",
                      "horizontal_stripes",
                      "vertical_stripes",
                      "diagonal_stripes",
                      "checker",
                      "dots"};
  set_channel_stats(data);
  return data;
}

}  // namespace kiln
