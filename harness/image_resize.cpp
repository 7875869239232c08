#include <algorithm>

#include "harness/image_file.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

// Output i of n is the sum over j of weights[j] * input[first + j], divided by total.
struct Taps {
  int first = 0;
  std::vector<uint64_t> weights;
  uint64_t total = 0;
};

// Positions in units of 1 / (2 * out) of an input pixel: output i is centred on (2 i + 1) * in - out, input j
// on 2 * out * j; the triangle falls to 0 at a distance of 2 * max(in, out).
std::vector<Taps> triangle_taps(int in, int out) {
  const int64_t reach = 2 * static_cast<int64_t>(std::max(in, out));
  std::vector<Taps> all(static_cast<size_t>(out));
  for (int i = 0; i < out; ++i) {
    Taps& taps = all[static_cast<size_t>(i)];
    const int64_t centre = (2 * static_cast<int64_t>(i) + 1) * in - out;
    const auto weight = [&](int64_t j) { return reach - std::abs(2 * out * j - centre); };
    int64_t j = std::max<int64_t>(0, (centre - reach) / (2 * out));
    while (weight(j) <= 0) ++j;
    taps.first = static_cast<int>(j);
    for (; j < in && weight(j) > 0; ++j) {
      taps.weights.push_back(static_cast<uint64_t>(weight(j)));
      taps.total += taps.weights.back();
    }
  }
  return all;
}

}  // namespace

Image resize_image(const Image& image, int height, int width) {
  if (height < 1 || width < 1 || image.height < 1 || image.width < 1) {
    fail_usage("an image of " + std::to_string(image.height) + "x" + std::to_string(image.width) +
               " cannot be resized to " + std::to_string(height) + "x" + std::to_string(width));
  }
  if (image.height == height && image.width == width) return image;
  const std::vector<Taps> across = triangle_taps(image.width, width);
  const std::vector<Taps> down = triangle_taps(image.height, height);
  const size_t channels = static_cast<size_t>(image.channels);
  const size_t in_row = static_cast<size_t>(image.width) * channels, out_row = across.size() * channels;

  std::vector<uint64_t> rows(static_cast<size_t>(image.height) * out_row);  // [image.height, width, channels]
  for (size_t y = 0; y < static_cast<size_t>(image.height); ++y) {
    uint64_t* out = rows.data() + y * out_row;
    for (const Taps& taps : across) {
      const uint8_t* in = image.pixels.data() + y * in_row + static_cast<size_t>(taps.first) * channels;
      for (const uint64_t weight : taps.weights) {
        for (size_t c = 0; c < channels; ++c) out[c] += weight * in[c];
        in += channels;
      }
      out += channels;
    }
  }
  Image result{height, width, image.channels, std::vector<uint8_t>(down.size() * out_row)};
  for (size_t y = 0; y < down.size(); ++y) {
    for (size_t x = 0; x < out_row; ++x) {
      // 16 bits of pixel and up to twice 33 bits of weights.
      unsigned __int128 sum = 0;
      const uint64_t* in = rows.data() + static_cast<size_t>(down[y].first) * out_row + x;
      for (size_t j = 0; j < down[y].weights.size(); ++j) {
        sum += static_cast<unsigned __int128>(down[y].weights[j]) * in[j * out_row];
      }
      const unsigned __int128 total =
          static_cast<unsigned __int128>(down[y].total) * across[x / channels].total;
      result.pixels[y * out_row + x] = static_cast<uint8_t>((sum + total / 2) / total);
    }
  }
  return result;
}

Image crop_center(const Image& image) {
  const int side = std::min(image.height, image.width);
  const int top = (image.height - side) / 2, left = (image.width - side) / 2;
  Image result{side, side, image.channels, {}};
  for (int y = 0; y < side; ++y) {
    const auto row =
        image.pixels.begin() + (static_cast<std::ptrdiff_t>(top + y) * image.width + left) * image.channels;
    result.pixels.insert(result.pixels.end(), row, row + static_cast<std::ptrdiff_t>(side) * image.channels);
  }
  return result;
}

}  // namespace kiln
