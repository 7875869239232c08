// CIFAR-10's binary version: six files of 10,000 records with one label byte.
#include <array>

#include "data/channel_stats.h"
#include "data/cifar_files.h"
#include "data/md5.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kRecords = 10000;  // a file
constexpr size_t kTestFile = 5;
// The official files, data_batch_1.bin to test_batch.bin.
constexpr std::array<const char*, 6> kMd5 = {
    "5dd7e06a14cb22eb9f671a540d1b7c25", "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421", "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d", "803d5f7f4d78ea53de84dbe85f74fb6d"};

}  // namespace

const CifarVersion& cifar10_version() {
  static const CifarVersion version = {.title = "CIFAR-10",
                                       .name = "cifar10",
                                       .files = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                                 "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"},
                                       .subfolder = "cifar-10-batches-bin",
                                       .archive = "cifar-10-binary.tar.gz",
                                       .foreign = {"data_batch_1", "cifar-10-batches-py"},
                                       .label_ranges = {10}};
  return version;
}

DataPair load_cifar10(const std::string& folder) {
  const CifarVersion& version = cifar10_version();
  const std::filesystem::path root = find_cifar_folder(folder, version);
  DataPair data;
  data.train = empty_cifar_set(version, kTestFile * kRecords);
  data.test = empty_cifar_set(version, kRecords);
  std::vector<std::string> differing;
  for (size_t i = 0; i < version.files.size(); ++i) {
    const std::filesystem::path path = root / version.files[i];
    const std::vector<uint8_t> content = read_cifar_file(path, version, kRecords);
    append_cifar_records(path, content, version, i == kTestFile ? &data.test : &data.train);
    const std::string md5 = md5_hex(content);
    if (md5 != kMd5[i]) differing.push_back(version.files[i] + " (MD5 " + md5 + ")");
  }
  if (!differing.empty()) {
    data.notes.push_back(join_names(differing) + (differing.size() == 1 ? " differs" : " differ") +
                         " from the official archive: used as given");
  }
  data.class_names = {"airplane", "automobile", "bird",  "cat",  "deer",
                      "dog",      "frog",       "horse", "ship", "truck"};
  set_channel_stats(data);
  return data;
}

}  // namespace kiln
