// Reader of CIFAR-10's binary version (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
// Images", 2009): six files of 10,000 records, a record is a label byte and 32 x 32 bytes each of red, green
// and blue, row by row.
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "data/channel_stats.h"
#include "data/dataset.h"
#include "data/md5.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr int kSide = 32, kChannels = 3, kClasses = 10;
constexpr size_t kPlane = kSide * kSide, kImageBytes = kPlane * kChannels, kRecordBytes = 1 + kImageBytes;
constexpr size_t kRecords = 10000, kFileBytes = kRecords * kRecordBytes;

struct OfficialFile {
  const char* name;
  const char* md5;
};
constexpr std::array<OfficialFile, 6> kFiles = {{
    {"data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25"},
    {"data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692"},
    {"data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421"},
    {"data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb"},
    {"data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d"},
    {"test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d"},
}};
constexpr size_t kTestFile = 5;
constexpr const char* kSubfolder = "cifar-10-batches-bin";

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// exists() that reports a folder that may not be searched.
bool present(const fs::path& path) {
  std::error_code error;
  const bool found = fs::exists(path, error);
  if (error) fail_usage("cannot read " + path.string() + ": " + error.message());
  return found;
}

std::vector<std::string> missing_files(const fs::path& folder) {
  std::vector<std::string> missing;
  for (const OfficialFile& file : kFiles) {
    if (!present(folder / file.name)) missing.emplace_back(file.name);
  }
  return missing;
}

// `folder` or its subfolder, whichever holds all six files.
fs::path find_folder(const fs::path& folder) {
  if (!present(folder)) fail_usage("data folder " + folder.string() + " does not exist");
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    fail_usage(folder.string() + " is not a folder; give the folder of CIFAR-10's six binary files");
  }
  const fs::directory_iterator readable(folder, error);
  if (error) fail_usage("cannot read folder " + folder.string() + ": " + error.message());

  const std::vector<std::string> missing = missing_files(folder);
  if (missing.empty()) return folder;
  const fs::path subfolder = folder / kSubfolder;
  const bool nested = missing.size() == kFiles.size() && present(subfolder);
  const std::vector<std::string> still_missing = nested ? missing_files(subfolder) : missing;
  if (still_missing.empty()) return subfolder;
  std::string text = "CIFAR-10 in " + (nested ? subfolder : folder).string() + ": ";
  if (still_missing.size() < kFiles.size()) fail_usage(text + "missing " + join(still_missing));
  text += "none of " + join(still_missing) + " is there";
  if (present(folder / "data_batch_1") || present(folder / "cifar-10-batches-py")) {
    text += "; these are the Python files, kiln reads the binary version (cifar-10-binary.tar.gz)";
  } else if (present(folder / "cifar-10-binary.tar.gz")) {
    text += "; unpack cifar-10-binary.tar.gz first";
  }
  fail_usage(text);
}

// What a file of the wrong size seems to be.
std::string describe_wrong_size(std::uintmax_t bytes, const std::string& head) {
  const auto starts_with = [&](const char* magic) { return head.rfind(magic, 0) == 0; };
  if (bytes == 0) return "it is empty";
  if (starts_with("\x1f\x8b")) return "it is a gzip archive: unpack it first";
  if (starts_with("PK")) return "it is a zip archive: unpack it first";
  if (starts_with("<")) return "it is a web page, not data: download it again";
  if (bytes < kFileBytes) {
    return "truncated after " + std::to_string(bytes / kRecordBytes) + " whole records, or a foreign file";
  }
  return "too long: a foreign file";
}

std::vector<uint8_t> read_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) fail_usage(path.string() + " is not a regular file");
  const std::uintmax_t bytes = fs::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in)
    fail_usage("cannot read " + path.string() + ": " + std::generic_category().message(errno));
  if (bytes != kFileBytes) {
    std::string head(4, '\0');
    in.read(head.data(), static_cast<std::streamsize>(head.size()));
    head.resize(static_cast<size_t>(in.gcount()));
    fail_usage(path.string() + " is " + std::to_string(bytes) + " bytes, must be " +
               std::to_string(kFileBytes) + " (" + std::to_string(kRecords) + " records of " +
               std::to_string(kRecordBytes) + "): " + describe_wrong_size(bytes, head));
  }
  std::vector<uint8_t> content(kFileBytes);
  in.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size()));
  if (static_cast<size_t>(in.gcount()) != content.size()) {
    fail_failure("reading " + path.string() + " stopped after " + std::to_string(in.gcount()) + " bytes");
  }
  return content;
}

// Appends the file's records; planes [3,32,32] become pixels [32,32,3].
void append_records(const fs::path& path, const std::vector<uint8_t>& content, Dataset& data) {
  for (size_t record = 0; record < kRecords; ++record) {
    const uint8_t* bytes = content.data() + record * kRecordBytes;
    if (bytes[0] >= kClasses) {
      fail_usage(path.string() + ": record " + std::to_string(record) + " (counted from 0) has label " +
                 std::to_string(bytes[0]) + ", must be 0 to 9: not a CIFAR-10 file, or a damaged one");
    }
    data.labels.push_back(bytes[0]);
    const size_t begin = data.images.size();
    data.images.resize(begin + kImageBytes);
    uint8_t* pixels = data.images.data() + begin;
    const uint8_t* planes = bytes + 1;
    for (size_t i = 0; i < kPlane; ++i) {
      for (size_t c = 0; c < kChannels; ++c) pixels[i * kChannels + c] = planes[c * kPlane + i];
    }
  }
}

Dataset empty_split(size_t files) {
  Dataset data;
  data.name = "cifar10";
  data.height = data.width = kSide;
  data.channels = kChannels;
  data.classes = kClasses;
  data.images.reserve(files * kRecords * kImageBytes);
  data.labels.reserve(files * kRecords);
  return data;
}

}  // namespace

DataPair load_cifar10(const std::string& folder) {
  const fs::path root = find_folder(folder);
  DataPair data;
  data.train = empty_split(kTestFile);
  data.test = empty_split(1);
  std::vector<std::string> differing;
  for (size_t i = 0; i < kFiles.size(); ++i) {
    const fs::path path = root / kFiles[i].name;
    const std::vector<uint8_t> content = read_file(path);
    append_records(path, content, i == kTestFile ? data.test : data.train);
    const std::string md5 = md5_hex(content);
    if (md5 != kFiles[i].md5) differing.push_back(std::string(kFiles[i].name) + " (MD5 " + md5 + ")");
  }
  if (!differing.empty()) {
    data.notes.push_back(join(differing) + (differing.size() == 1 ? " differs" : " differ") +
                         " from the official archive: used as given");
  }
  data.class_names = {"airplane", "automobile", "bird",  "cat",  "deer",
                      "dog",      "frog",       "horse", "ship", "truck"};
  set_channel_stats(data);
  return data;
}

}  // namespace kiln
