// CIFAR-100's binary version: train.bin with 50,000 records, test.bin with 10,000; the first label byte is
// the superclass (20), which is checked and dropped, the second the class (100).
#include <fstream>

#include "data/channel_stats.h"
#include "data/cifar_files.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr size_t kTrainRecords = 50000, kTestRecords = 10000;
constexpr const char* kNamesFile = "fine_label_names.txt";

Dataset read_set(const std::filesystem::path& path, size_t records) {
  const CifarVersion& version = cifar100_version();
  Dataset data = empty_cifar_set(version, records);
  append_cifar_records(path, read_cifar_file(path, version, records), version, &data);
  return data;
}

// The file's lines that are not empty; without the file numbers, and a note.
std::vector<std::string> read_class_names(const std::filesystem::path& path, size_t classes,
                                          std::vector<std::string>* notes) {
  std::vector<std::string> names;
  if (!path_exists(path)) {
    notes->push_back(std::string(kNamesFile) + " is not there: the classes are named by their numbers");
    for (size_t i = 0; i < classes; ++i) names.push_back("class_" + std::to_string(i));
    return names;
  }
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) names.push_back(line);
  }
  if (names.size() != classes) {
    fail_usage(path.string() + " names " + std::to_string(names.size()) + " classes, must name " +
               std::to_string(classes) + ", one a line");
  }
  return names;
}

}  // namespace

const CifarVersion& cifar100_version() {
  static const CifarVersion version = {.title = "CIFAR-100",
                                       .name = "cifar100",
                                       .files = {"train.bin", "test.bin"},
                                       .subfolder = "cifar-100-binary",
                                       .archive = "cifar-100-binary.tar.gz",
                                       .foreign = {"cifar-100-python", "meta"},
                                       .label_ranges = {20, 100}};
  return version;
}

DataPair load_cifar100(const std::string& folder) {
  const CifarVersion& version = cifar100_version();
  const std::filesystem::path root = find_cifar_folder(folder, version);
  DataPair data;
  data.class_names = read_class_names(root / kNamesFile, static_cast<size_t>(version.classes()), &data.notes);
  data.train = read_set(root / version.files[0], kTrainRecords);
  data.test = read_set(root / version.files[1], kTestRecords);
  set_channel_stats(data);
  return data;
}

}  // namespace kiln
