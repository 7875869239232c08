// Image files: decoding of Netpbm's formats, resizing, and the split of an image folder. PNG and JPEG files
// are tested through `kiln import` (test_cli_import.py).
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "harness/image_file.h"
#include "harness/image_folder.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

Image random_image(int height, int width, int channels, uint64_t seed) {
  Image image{height, width, channels, std::vector<uint8_t>(static_cast<size_t>(height) * width * channels)};
  for (size_t i = 0; i < image.pixels.size(); ++i) {
    image.pixels[i] = static_cast<uint8_t>(philox(seed, PhiloxStream::kTest, i).v[0]);
  }
  return image;
}

// The same definition in floating point and without separation: weight max(0, 1 - |distance| / scale).
double resized_pixel(const Image& in, int height, int width, int y, int x, int c) {
  const auto weight = [](int i, int j, int from, int to) {
    const double scale = static_cast<double>(from) / to, centre = (i + 0.5) * scale - 0.5;
    return std::max(0.0, 1 - std::abs(j - centre) / std::max(1.0, scale));
  };
  double sum = 0, total = 0;
  for (int j = 0; j < in.height; ++j) {
    for (int i = 0; i < in.width; ++i) {
      const double w = weight(y, j, in.height, height) * weight(x, i, in.width, width);
      sum += w * in.pixels[(static_cast<size_t>(j) * in.width + i) * in.channels + c];
      total += w;
    }
  }
  return sum / total;
}

TEST(Resize, IsTheTriangleFilter) {
  const struct {
    int from_h, from_w, to_h, to_w, channels;
  } cases[] = {{45, 61, 32, 32, 3}, {7, 9, 32, 20, 1},  {64, 64, 32, 32, 3}, {1, 1, 4, 5, 3},
               {50, 3, 1, 1, 1},    {17, 90, 33, 8, 3}, {32, 32, 31, 33, 1}};
  for (const auto& k : cases) {
    const Image in = random_image(k.from_h, k.from_w, k.channels, 3);
    const Image out = resize_image(in, k.to_h, k.to_w);
    ASSERT_EQ(out.pixels.size(), static_cast<size_t>(k.to_h) * k.to_w * k.channels);
    for (int y = 0; y < k.to_h; ++y) {
      for (int x = 0; x < k.to_w; ++x) {
        for (int c = 0; c < k.channels; ++c) {
          ASSERT_NEAR(out.pixels[(static_cast<size_t>(y) * k.to_w + x) * k.channels + c],
                      resized_pixel(in, k.to_h, k.to_w, y, x, c), 0.5 + 1e-6)
              << k.from_h << "x" << k.from_w << " to " << k.to_h << "x" << k.to_w << " at " << y << ", " << x;
        }
      }
    }
  }
}

TEST(Resize, KeepsAnImageOfThatSizeAndAConstantOne) {
  const Image image = random_image(32, 32, 3, 1);
  EXPECT_EQ(resize_image(image, 32, 32).pixels, image.pixels);
  Image constant{301, 77, 1, std::vector<uint8_t>(301 * 77, 201)};
  const Image small = resize_image(constant, 32, 100);
  EXPECT_EQ(std::count(small.pixels.begin(), small.pixels.end(), 201), 3200);
  EXPECT_THROW(resize_image(image, 0, 5), Error);
}

TEST(Resize, ACheckerboardBecomesGrey) {
  Image board{256, 256, 1, {}};
  for (int i = 0; i < 256 * 256; ++i) board.pixels.push_back((i % 256 + i / 256) % 2 ? 255 : 0);
  const Image small = resize_image(board, 32, 32);
  const auto [low, high] = std::minmax_element(small.pixels.begin(), small.pixels.end());
  EXPECT_GE(*low, 126);
  EXPECT_LE(*high, 129);
}

TEST(Crop, TakesTheMiddle) {
  Image image{2, 5, 1, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}};
  EXPECT_EQ(crop_center(image).pixels, (std::vector<uint8_t>{1, 2, 6, 7}));
  image = {3, 1, 2, {0, 1, 2, 3, 4, 5}};
  EXPECT_EQ(crop_center(image).pixels, (std::vector<uint8_t>{2, 3}));
}

class ImageFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("kiln_images_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  Image read(const std::string& bytes, int channels) {
    std::ofstream(folder_ / "a.ppm", std::ios::binary) << bytes;
    return read_image(folder_ / "a.ppm", channels);
  }
  std::string error(const std::string& bytes) {
    try {
      read(bytes, 3);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_status(), 2);
      EXPECT_NE(std::string(error.what()).find("a.ppm"), std::string::npos) << error.what();
      return error.what();
    }
    return "no error";
  }
  fs::path folder_;
};

using Bytes = std::vector<uint8_t>;

TEST_F(ImageFiles, Netpbm) {
  const Image image = read("P6 # colour\n2 1\n#\n255\nabcxyz", 3);
  EXPECT_EQ(std::tuple(image.height, image.width, image.channels), std::tuple(1, 2, 3));
  EXPECT_EQ(image.pixels, (Bytes{'a', 'b', 'c', 'x', 'y', 'z'}));
  EXPECT_EQ(read("P5 2 1 255\nab", 3).pixels, (Bytes{'a', 'a', 'a', 'b', 'b', 'b'}));
  EXPECT_EQ(read(std::string("P6 1 1 255\n\xff\x00\x00", 14), 1).pixels, (Bytes{76}));  // 0.299 * 255
  EXPECT_EQ(read(std::string("P5 3 1 4\n\0\2\4", 12), 1).pixels, (Bytes{0, 128, 255}));
  EXPECT_EQ(read(std::string("P5 2 1 65535\n\xff\xff\x80\x00", 17), 1).pixels, (Bytes{255, 128}));
}

TEST_F(ImageFiles, WrongFiles) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "empty"},
      {"P6 2 2 255\nabc", "truncated"},
      {"P6 2 2 255", "damaged header"},
      {"P6 0 2 255\n", "no width"},
      {"P6 2 x 255\n", "no height"},
      {"P6 99999999999 2 255\n", "impossible width"},
      {"P5 60000 60000 255\n", "too many pixels"},
      {"P5 1 1 7\nz", "over its largest"},
      {"P3 1 1 255\n1 2 3", "ASCII"},
      {"GIF89a", "a GIF image"},
      {"<html>", "is text"},
      {"hello", "unknown kind"},
      {"\x89PNG\r\n\x1a\n", "truncated"},
      {"\xff\xd8\xff\xe0", "truncated"}};
  for (const auto& [bytes, part] : cases)
    EXPECT_NE(error(bytes).find(part), std::string::npos) << error(bytes);
  EXPECT_THROW(read_image(folder_ / "none.png", 3), Error);
  EXPECT_THROW(read_image(folder_, 3), Error);
  EXPECT_THROW(read("P5 1 1 255\na", 2), Error);
}

TEST(Extension, AnyCase) {
  EXPECT_TRUE(has_image_extension("a/b.PNG"));
  EXPECT_TRUE(has_image_extension("b.x.jpeg"));
  EXPECT_FALSE(has_image_extension("b.txt"));
  EXPECT_FALSE(has_image_extension("png"));
}

TEST(Split, IsStratified) {
  std::vector<int32_t> labels;
  const std::vector<int> counts = {100, 50, 7, 2, 1};
  for (size_t label = 0; label < counts.size(); ++label) labels.insert(labels.end(), counts[label], label);
  const Split split = stratified_split(labels, 0.2, 5);
  std::vector<int> test(5);
  for (const size_t i : split.test) ++test[labels[i]];
  EXPECT_EQ(test, (std::vector<int>{20, 10, 1, 1, 0}));
  std::set<size_t> all(split.train.begin(), split.train.end());
  all.insert(split.test.begin(), split.test.end());
  EXPECT_EQ(all.size(), labels.size());
  EXPECT_EQ(split.train.size() + split.test.size(), labels.size());
  EXPECT_FALSE(std::is_sorted(split.train.begin(), split.train.end()));

  EXPECT_EQ(split.train, stratified_split(labels, 0.2, 5).train);
  EXPECT_EQ(split.test, stratified_split(labels, 0.2, 5).test);
  EXPECT_NE(split.test, stratified_split(labels, 0.2, 6).test);
}

TEST(Split, Given) {
  const Split split = given_split({false, true, false, true, true}, 1);
  EXPECT_EQ(std::set<size_t>(split.train.begin(), split.train.end()), (std::set<size_t>{0, 2}));
  EXPECT_EQ(std::set<size_t>(split.test.begin(), split.test.end()), (std::set<size_t>{1, 3, 4}));
}

}  // namespace
}  // namespace kiln
