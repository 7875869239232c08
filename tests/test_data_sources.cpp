// data/: CIFAR-100, record files, and what load_data says about anything else.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "data/record_file.h"
#include "data/safetensors.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

class Sources : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("kiln_sources_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static void put(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  static std::string get(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void expect_error(const std::function<void()>& work, const std::vector<std::string>& parts) {
    try {
      work();
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_status(), 2);
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "'" << part << "' in: " << error.what();
      }
      return;
    }
    ADD_FAILURE() << "no error; one with '" << parts[0] << "' was expected";
  }
  void expect_load_error(const fs::path& path, const std::vector<std::string>& parts) {
    expect_error([&] { load_data(path.string()); }, parts);
  }

  // Record r: coarse label r % 20, fine label r % 100, channel plane c and pixel i hold (r + 50 c + i) % 256.
  static std::string cifar100_file(size_t records) {
    std::string bytes;
    bytes.reserve(records * 3074);
    for (size_t r = 0; r < records; ++r) {
      bytes += static_cast<char>(r % 20);
      bytes += static_cast<char>(r % 100);
      for (size_t c = 0; c < 3; ++c) {
        for (size_t i = 0; i < 1024; ++i) bytes += static_cast<char>((r + 50 * c + i) % 256);
      }
    }
    return bytes;
  }
  static void put_cifar100(const fs::path& folder) {
    fs::create_directories(folder);
    put(folder / "train.bin", cifar100_file(50000));
    put(folder / "test.bin", cifar100_file(10000));
    std::string names;
    for (int i = 0; i < 100; ++i) names += "thing_" + std::to_string(i) + "\r\n";
    put(folder / "fine_label_names.txt", names + "\n");
  }

  fs::path folder_;
};

// CIFAR-100 ---------------------------------------------------------------------------------------

TEST_F(Sources, Cifar100) {
  put_cifar100(folder_ / "cifar-100-binary");
  const DataPair pair = load_data(folder_.string());  // in the archive's subfolder
  EXPECT_EQ(pair.train.name, "cifar100");
  EXPECT_EQ(pair.train.classes, 100);
  ASSERT_EQ(pair.train.count(), 50000);
  ASSERT_EQ(pair.test.count(), 10000);
  for (const size_t record : {0, 7, 123, 49999}) {
    EXPECT_EQ(pair.train.labels[record], static_cast<int>(record % 100));
    for (const size_t pixel : {0, 33, 1023}) {
      for (size_t c = 0; c < 3; ++c) {
        EXPECT_EQ(pair.train.images[(record * 1024 + pixel) * 3 + c], (record + 50 * c + pixel) % 256);
      }
    }
  }
  ASSERT_EQ(pair.class_names.size(), 100u);
  EXPECT_EQ(pair.class_names[42], "thing_42");
  EXPECT_EQ(pair.mean.size(), 3u);
}

TEST_F(Sources, Cifar100WrongFiles) {
  put_cifar100(folder_);
  put(folder_ / "fine_label_names.txt", "apple\n");
  expect_load_error(folder_, {"fine_label_names.txt", "names 1 classes", "100"});
  fs::remove(folder_ / "fine_label_names.txt");
  std::string bytes = cifar100_file(10000);
  bytes[17 * 3074 + 1] = 100;
  put(folder_ / "test.bin", bytes);
  expect_load_error(folder_, {"test.bin", "record 17", "label 100", "0 to 99"});
  bytes[17 * 3074] = 20;
  put(folder_ / "test.bin", bytes);
  expect_load_error(folder_, {"test.bin", "record 17", "coarse label 20", "0 to 19"});
  put(folder_ / "test.bin", cifar100_file(10000));
  const DataPair pair = load_data(folder_.string());
  EXPECT_EQ(pair.class_names[7], "class_7");
  ASSERT_EQ(pair.notes.size(), 1u);
  EXPECT_NE(pair.notes[0].find("fine_label_names.txt"), std::string::npos);
  fs::resize_file(folder_ / "train.bin", 3074 * 10);
  expect_load_error(folder_, {"train.bin", "truncated after 10 whole records"});
  fs::remove(folder_ / "train.bin");
  expect_load_error(folder_, {"CIFAR-100", "missing train.bin"});
}

// Record files ------------------------------------------------------------------------------------

// 3 training and 2 test images of 2 x 3 with one channel and 12 classes.
DataPair small_pair() {
  DataPair pair;
  for (int i = 0; i < 12; ++i) pair.class_names.push_back("class \"" + std::to_string(i) + "\" \xc3\xa4");
  for (Dataset* set : {&pair.train, &pair.test}) {
    const int count = set == &pair.train ? 3 : 2;
    *set = {
        .name = "small", .height = 2, .width = 3, .channels = 1, .classes = 12, .images = {}, .labels = {}};
    for (int i = 0; i < count; ++i) set->labels.push_back(11 - i);
    for (int i = 0; i < 6 * count; ++i) set->images.push_back(static_cast<uint8_t>(40 * i + count));
  }
  return pair;
}

TEST_F(Sources, RecordFileRoundTrip) {
  const std::string path = folder_ / "small.safetensors";
  const DataPair wanted = small_pair();
  write_record_file(path, wanted);
  const DataPair got = load_data(path);
  for (const auto& [a, b] : {std::pair(&got.train, &wanted.train), std::pair(&got.test, &wanted.test)}) {
    EXPECT_EQ(a->name, "small");
    EXPECT_EQ(a->images, b->images);
    EXPECT_EQ(a->labels, b->labels);
    EXPECT_EQ(std::tuple(a->height, a->width, a->channels, a->classes), std::tuple(2, 3, 1, 12));
  }
  EXPECT_EQ(got.class_names, wanted.class_names);
  ASSERT_EQ(got.mean.size(), 1u);
  double sum = 0;
  for (const uint8_t v : wanted.train.images) sum += v / 255.0;
  EXPECT_NEAR(got.mean[0], sum / 18, 1e-6);
}

TEST_F(Sources, RecordFileOfAnyTensorOrder) {
  const std::string path = folder_ / "small.safetensors";
  write_record_file(path, small_pair());
  SafeTensors file = read_safetensors(path);
  std::reverse(file.tensors.begin(), file.tensors.end());
  write_safetensors(path, file);
  EXPECT_EQ(load_data(path).train.images, small_pair().train.images);
}

TEST_F(Sources, DamagedRecordFiles) {
  const std::string path = folder_ / "small.safetensors";
  write_record_file(path, small_pair());
  const std::string good = get(path);
  for (size_t at = good.size() - 30 - 20; at < good.size(); ++at) {  // the bytes of the tensors
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 64);
    put(path, bytes);
    expect_load_error(path, {path, "damaged", "MD5"});
  }
  for (const size_t length : {size_t{0}, size_t{5}, size_t{60}, good.size() - 31, good.size() - 1}) {
    put(path, good.substr(0, length));
    expect_load_error(path, {path});
  }
  put(path, good + "x");
  expect_load_error(path, {path, "damaged"});
}

TEST_F(Sources, RecordFilesThatBreakARule) {
  const std::string path = folder_ / "small.safetensors";
  const auto changed = [&](const std::function<void(DataPair&)>& change,
                           const std::vector<std::string>& parts) {
    DataPair pair = small_pair();
    change(pair);
    write_record_file(path, pair);
    expect_load_error(path, parts);
  };
  changed([](DataPair& p) { p.train.labels[1] = 12; }, {path, "train.labels[1] is 12", "0 to 11"});
  changed([](DataPair& p) { p.test.labels[0] = -1; }, {path, "test.labels[0] is -1"});
  changed([](DataPair& p) { p.class_names.clear(); }, {path, "class_names"});
  changed([](DataPair& p) { std::swap(p.test.height, p.test.width); }, {path, "test images differ in size"});
  changed([](DataPair& p) { p.test.labels.clear(), p.test.images.clear(); }, {path, "test has 0 images"});

  write_record_file(path, small_pair());
  const SafeTensors good = read_safetensors(path);
  const auto rewritten = [&](const std::function<void(SafeTensors&)>& change,
                             const std::vector<std::string>& parts) {
    SafeTensors file = good;
    change(file);
    write_safetensors(path, file);
    expect_load_error(path, parts);
  };
  rewritten([](SafeTensors& f) { f.metadata.erase("format"); }, {path, "no record file", "kiln import"});
  rewritten([](SafeTensors& f) { f.metadata.erase("md5"); }, {path, "no 'md5'"});
  rewritten([](SafeTensors& f) { f.metadata["class_names"] = "{\"a\": 1}"; }, {path, "class_names"});
  rewritten([](SafeTensors& f) { f.tensors.pop_back(); }, {path, "3 tensors"});
  rewritten([](SafeTensors& f) { f.tensors[0].name = "labels"; }, {path, "'train.labels' is missing"});
  rewritten([](SafeTensors& f) { f.tensors[0].dtype = "F32"; }, {path, "'train.labels' is F32", "I32"});
  rewritten([](SafeTensors& f) { f.tensors[2].shape = {3, 6, 1}; }, {path, "'train.images'", "3 dimensions"});
  rewritten(
      [](SafeTensors& f) {
        f.tensors[2].shape = {2, 3, 3, 1};
      },
      {path, "train has 2 images and 3 labels"});
}

// load_data ---------------------------------------------------------------------------------------

TEST_F(Sources, SaysWhatWasFoundAndWhatIsNeeded) {
  expect_load_error(folder_ / "nowhere", {"nowhere", "does not exist", "scripts/fetch"});
  expect_load_error(folder_, {"it holds nothing", "data_batch_1.bin", "train.bin", "kiln import"});
  for (const char* name : {"d.txt", "a.txt", "b.txt", "e.txt", "c.txt", "f.txt"}) put(folder_ / name, "x");
  expect_load_error(folder_, {"it holds a.txt, b.txt, c.txt, d.txt and 2 more"});
  expect_load_error(folder_ / "a.txt", {"a.txt", "not a safetensors file"});
  fs::create_directories(folder_ / "cats");
  expect_load_error(folder_, {"cats/", "subfolder of images for each class"});
  put(folder_ / "cifar-100-binary.tar.gz", "x");
  expect_load_error(folder_, {"unpack cifar-100-binary.tar.gz first"});
  expect_load_error(folder_ / "cifar-100-binary.tar.gz", {"is an archive"});
  fs::create_directories(folder_ / "cifar-10-batches-py");
  expect_load_error(folder_, {"these are the Python files", "cifar-10-binary.tar.gz"});
  put(folder_ / "train.bin", "x");
  expect_load_error(folder_ / "train.bin", {"one of CIFAR-100's files: give the folder"});
  put(folder_ / "data_batch_1.bin", "x");
  expect_load_error(folder_, {"both CIFAR-10 and CIFAR-100"});
}

TEST_F(Sources, FetchedSets) {
  const char* before = std::getenv("XDG_CACHE_HOME");
  const std::string kept = before ? before : "";
  ASSERT_EQ(setenv("XDG_CACHE_HOME", folder_.c_str(), 1), 0);
  expect_load_error("cifar100", {(folder_ / "kiln" / "cifar100").string(), "scripts/fetch cifar100"});
  expect_load_error("cifar10", {"scripts/fetch cifar10"});
  put_cifar100(folder_ / "kiln" / "cifar100");
  EXPECT_EQ(load_data("cifar100").train.count(), 50000);
  before ? setenv("XDG_CACHE_HOME", kept.c_str(), 1) : unsetenv("XDG_CACHE_HOME");
}

}  // namespace
}  // namespace kiln
