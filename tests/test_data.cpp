// data/: the built-in set is the same everywhere; the CIFAR-10 reader's layout and its errors.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include "data/dataset.h"
#include "data/md5.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRecordBytes = 3073, kRecords = 10000;

std::string md5_of(const std::string& text) {
  return md5_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

TEST(Md5, KnownDigests) {  // RFC 1321, A.5
  EXPECT_EQ(md5_of(""), "d41d8cd98f00b204e9800998ecf8427e");
  EXPECT_EQ(md5_of("abc"), "900150983cd24fb0d6963f7d28e17f72");
  EXPECT_EQ(md5_of("12345678901234567890123456789012345678901234567890123456789012345678901234567890"),
            "57edf4a22be3c955ac49da2e2107b67a");
}

TEST(Md5, PiecesGiveTheDigestOfTheWhole) {
  std::vector<uint8_t> message(1000);
  for (size_t i = 0; i < message.size(); ++i) message[i] = static_cast<uint8_t>(i * 7);
  for (const size_t piece : {1, 13, 63, 64, 65, 130, 1000}) {
    Md5 md5;
    const std::span<const uint8_t> all(message);
    for (size_t at = 0; at < all.size(); at += piece)
      md5.update(all.subspan(at, std::min(piece, all.size() - at)));
    EXPECT_EQ(md5.hex(), md5_hex(message)) << piece;
    EXPECT_EQ(md5.hex(), md5_hex(message)) << "asked twice";
  }
}

// Built-in set ------------------------------------------------------------------------------------

std::string digest(const Dataset& data) {
  std::vector<uint8_t> bytes = data.images;
  for (const int32_t label : data.labels) bytes.push_back(static_cast<uint8_t>(label));
  return md5_hex(bytes);
}

TEST(BuiltinData, SameBitsForTheSameArguments) {
  const DataPair a = make_builtin_data(300, 100, 5), b = make_builtin_data(300, 100, 5);
  EXPECT_EQ(digest(a.train), digest(b.train));
  EXPECT_EQ(digest(a.test), digest(b.test));
  EXPECT_NE(digest(a.train), digest(make_builtin_data(300, 100, 6).train));
  EXPECT_NE(digest(make_builtin_data(100, 100, 5).train), digest(a.test));
  EXPECT_EQ(digest(make_builtin_data(200, 50, 0).train), "5bf89aef8bd28f0d0f1160d876b9e921");
  EXPECT_EQ(digest(make_builtin_data(200, 50, 0).test), "2d754b3ebbaeb6e4f136523d9acd2214");
}

TEST(BuiltinData, ShapesAndLabels) {
  const DataPair pair = make_builtin_data(1000, 200);
  for (const Dataset* data : {&pair.train, &pair.test}) {
    EXPECT_EQ(data->height, 32);
    EXPECT_EQ(data->width, 32);
    EXPECT_EQ(data->channels, 3);
    EXPECT_EQ(data->classes, 10);
    EXPECT_EQ(static_cast<long long>(data->images.size()), data->count() * 32 * 32 * 3);
    std::map<int, int> counts;
    for (const int32_t label : data->labels) ++counts[label];
    EXPECT_EQ(counts.size(), 10u);
    EXPECT_GE(counts.begin()->first, 0);
    EXPECT_LE(counts.rbegin()->first, 9);
  }
  EXPECT_EQ(pair.train.count(), 1000);
  EXPECT_EQ(pair.test.count(), 200);
  EXPECT_EQ(pair.class_names.size(), 10u);
}

TEST(BuiltinData, MeanAndDeviationAreThoseOfTheTrainingPixels) {
  const DataPair pair = make_builtin_data(200, 10);
  ASSERT_EQ(pair.mean.size(), 3u);
  ASSERT_EQ(pair.std.size(), 3u);
  for (int c = 0; c < 3; ++c) {
    double sum = 0, squares = 0;
    const double count = static_cast<double>(pair.train.images.size()) / 3;
    for (size_t i = static_cast<size_t>(c); i < pair.train.images.size(); i += 3) {
      const double v = pair.train.images[i] / 255.0;
      sum += v;
      squares += v * v;
    }
    EXPECT_NEAR(pair.mean[c], sum / count, 1e-5);
    EXPECT_NEAR(pair.std[c], std::sqrt(squares / count - sum / count * sum / count), 1e-4);
  }
}

// CIFAR-10 ----------------------------------------------------------------------------------------

class Cifar10 : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("kiln_cifar_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string name(int file) {
    return file == 5 ? "test_batch.bin" : "data_batch_" + std::to_string(file + 1) + ".bin";
  }
  // Record r of file f: label (r + f) % 10; channel plane c, pixel i is (r + 50 c + i) % 256.
  static std::string file_content(int file) {
    std::string bytes;
    bytes.reserve(kRecords * kRecordBytes);
    for (size_t r = 0; r < kRecords; ++r) {
      bytes += static_cast<char>((r + static_cast<size_t>(file)) % 10);
      for (size_t c = 0; c < 3; ++c) {
        for (size_t i = 0; i < 1024; ++i) bytes += static_cast<char>((r + 50 * c + i) % 256);
      }
    }
    return bytes;
  }
  void put(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }
  void put_all(const fs::path& folder) {
    fs::create_directories(folder);
    for (int f = 0; f < 6; ++f) put(folder / name(f), file_content(f));
  }
  std::string error() {
    try {
      load_cifar10(folder_.string());
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_status(), 2);
      return error.what();
    }
    return "no error";
  }

  fs::path folder_;
};

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST_F(Cifar10, ReadsPlanesAsPixels) {
  put_all(folder_);
  const DataPair pair = load_cifar10(folder_.string());
  ASSERT_EQ(pair.train.count(), 50000);
  ASSERT_EQ(pair.test.count(), 10000);
  for (const auto& [image, file, record] : {std::tuple{0, 0, 0}, {10007, 1, 7}, {49999, 4, 9999}}) {
    EXPECT_EQ(pair.train.labels[image], (record + file) % 10);
    for (const int pixel : {0, 1, 33, 1023}) {
      for (int c = 0; c < 3; ++c) {
        EXPECT_EQ(pair.train.images[(static_cast<size_t>(image) * 1024 + pixel) * 3 + c],
                  (record + 50 * c + pixel) % 256);
      }
    }
  }
  EXPECT_EQ(pair.test.labels[3], 8);
  // These are not the official files: read, with a note for each.
  const auto noted = [&](const std::string& file) {
    return std::any_of(pair.notes.begin(), pair.notes.end(),
                       [&](const std::string& note) { return note.find(file) != std::string::npos; });
  };
  for (int f = 0; f < 6; ++f) EXPECT_TRUE(noted(name(f))) << name(f);
  EXPECT_EQ(load_data(folder_.string()).train.count(), 50000);
}

TEST_F(Cifar10, FindsTheArchivesSubfolder) {
  put_all(folder_ / "cifar-10-batches-bin");
  EXPECT_EQ(load_cifar10(folder_.string()).train.count(), 50000);
}

TEST_F(Cifar10, MissingFolderAndFiles) {
  EXPECT_CONTAINS(error(), "data_batch_1.bin");
  put_all(folder_);
  fs::remove(folder_ / "data_batch_3.bin");
  EXPECT_CONTAINS(error(), "missing data_batch_3.bin");
  fs::remove_all(folder_);
  EXPECT_CONTAINS(error(), "does not exist");
}

TEST_F(Cifar10, TruncatedAndForeignFiles) {
  put_all(folder_);
  fs::resize_file(folder_ / "data_batch_2.bin", 100 * kRecordBytes + 5);
  EXPECT_CONTAINS(error(), "data_batch_2.bin");
  EXPECT_CONTAINS(error(), "truncated");
  put(folder_ / "data_batch_2.bin", "<html>not found</html>");
  EXPECT_CONTAINS(error(), "web page");
  put(folder_ / "data_batch_2.bin", std::string("\x1f\x8b\x08", 3));
  EXPECT_CONTAINS(error(), "gzip");
  put(folder_ / "data_batch_2.bin", "");
  EXPECT_CONTAINS(error(), "empty");
}

TEST_F(Cifar10, BadLabel) {
  put_all(folder_);
  std::string bytes = file_content(5);
  bytes[42 * kRecordBytes] = 10;
  put(folder_ / "test_batch.bin", bytes);
  EXPECT_CONTAINS(error(), "test_batch.bin");
  EXPECT_CONTAINS(error(), "record 42");
  EXPECT_CONTAINS(error(), "label 10");
}

TEST(LoadData, EmptyMeansBuiltin) { EXPECT_EQ(load_data("").train.name, "builtin"); }

}  // namespace
}  // namespace kiln
