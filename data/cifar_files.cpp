#include "data/cifar_files.h"

#include <cerrno>
#include <fstream>
#include <system_error>

#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSide = 32, kChannels = 3, kPlane = kSide * kSide, kImageBytes = kPlane * kChannels;

std::vector<std::string> missing_files(const fs::path& folder, const CifarVersion& version) {
  std::vector<std::string> missing;
  for (const std::string& file : version.files) {
    if (!path_exists(folder / file)) missing.push_back(file);
  }
  return missing;
}

// What a file of the wrong size seems to be.
std::string describe_wrong_size(std::uintmax_t bytes, const std::string& head, size_t wanted,
                                size_t record_bytes) {
  const auto starts_with = [&](const char* magic) { return head.rfind(magic, 0) == 0; };
  if (bytes == 0) return "it is empty";
  if (starts_with("\x1f\x8b")) return "it is a gzip archive: unpack it first";
  if (starts_with("PK")) return "it is a zip archive: unpack it first";
  if (starts_with("<")) return "it is a web page, not data: download it again";
  if (bytes < wanted) {
    return "truncated after " + std::to_string(bytes / record_bytes) + " whole records, or a foreign file";
  }
  return "too long: a foreign file";
}

}  // namespace

size_t CifarVersion::record_bytes() const { return label_ranges.size() + kImageBytes; }

std::string join_names(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

bool path_exists(const fs::path& path) {
  std::error_code error;
  const bool found = fs::exists(path, error);
  if (error) fail_usage("cannot read " + path.string() + ": " + error.message());
  return found;
}

bool seems_cifar(const fs::path& folder, const CifarVersion& version) {
  return path_exists(folder / version.subfolder) ||
         missing_files(folder, version).size() < version.files.size();
}

std::string cifar_hint(const fs::path& folder, const CifarVersion& version) {
  for (const std::string& name : version.foreign) {
    if (path_exists(folder / name)) {
      return "; these are the Python files, kiln reads the binary version (" + std::string(version.archive) +
             ")";
    }
  }
  if (path_exists(folder / version.archive)) return "; unpack " + std::string(version.archive) + " first";
  return "";
}

fs::path find_cifar_folder(const fs::path& folder, const CifarVersion& version) {
  const std::string title = version.title;
  if (!path_exists(folder)) fail_usage("data folder " + folder.string() + " does not exist");
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    fail_usage(folder.string() + " is not a folder; give the folder of " + title + "'s binary files");
  }
  const fs::directory_iterator readable(folder, error);
  if (error) fail_usage("cannot read folder " + folder.string() + ": " + error.message());

  const size_t all = version.files.size();
  const std::vector<std::string> missing = missing_files(folder, version);
  if (missing.empty()) return folder;
  const fs::path subfolder = folder / version.subfolder;
  const bool nested = missing.size() == all && path_exists(subfolder);
  const std::vector<std::string> still_missing = nested ? missing_files(subfolder, version) : missing;
  if (still_missing.empty()) return subfolder;
  const std::string text = title + " in " + (nested ? subfolder : folder).string() + ": ";
  if (still_missing.size() < all) fail_usage(text + "missing " + join_names(still_missing));
  fail_usage(text + "none of " + join_names(still_missing) + " is there" + cifar_hint(folder, version));
}

Dataset empty_cifar_set(const CifarVersion& version, size_t records) {
  Dataset data;
  data.name = version.name;
  data.height = data.width = kSide;
  data.channels = kChannels;
  data.classes = version.classes();
  data.images.reserve(records * kImageBytes);
  data.labels.reserve(records);
  return data;
}

std::vector<uint8_t> read_cifar_file(const fs::path& path, const CifarVersion& version, size_t records) {
  const size_t record_bytes = version.record_bytes(), wanted = records * record_bytes;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) fail_usage(path.string() + " is not a regular file");
  const std::uintmax_t bytes = fs::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in)
    fail_usage("cannot read " + path.string() + ": " + std::generic_category().message(errno));
  if (bytes != wanted) {
    std::string head(4, '\0');
    in.read(head.data(), static_cast<std::streamsize>(head.size()));
    head.resize(static_cast<size_t>(in.gcount()));
    fail_usage(path.string() + " is " + std::to_string(bytes) + " bytes, must be " + std::to_string(wanted) +
               " (" + std::to_string(records) + " records of " + std::to_string(record_bytes) +
               "): " + describe_wrong_size(bytes, head, wanted, record_bytes));
  }
  std::vector<uint8_t> content(wanted);
  in.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size()));
  if (static_cast<size_t>(in.gcount()) != content.size()) {
    fail_failure("reading " + path.string() + " stopped after " + std::to_string(in.gcount()) + " bytes");
  }
  return content;
}

void append_cifar_records(const fs::path& path, const std::vector<uint8_t>& content,
                          const CifarVersion& version, Dataset* data) {
  const size_t record_bytes = version.record_bytes(), label_bytes = version.label_ranges.size();
  for (size_t record = 0; record < content.size() / record_bytes; ++record) {
    const uint8_t* bytes = content.data() + record * record_bytes;
    for (size_t i = 0; i < label_bytes; ++i) {
      if (bytes[i] < version.label_ranges[i]) continue;
      fail_usage(path.string() + ": record " + std::to_string(record) + " (counted from 0) has " +
                 (i + 1 < label_bytes ? "coarse label " : "label ") + std::to_string(bytes[i]) +
                 ", must be 0 to " + std::to_string(version.label_ranges[i] - 1) + ": not a " +
                 version.title + " file, or a damaged one");
    }
    data->labels.push_back(bytes[label_bytes - 1]);
    const size_t begin = data->images.size();
    data->images.resize(begin + kImageBytes);
    uint8_t* pixels = data->images.data() + begin;
    const uint8_t* planes = bytes + label_bytes;
    for (size_t i = 0; i < kPlane; ++i) {
      for (size_t c = 0; c < kChannels; ++c) pixels[i * kChannels + c] = planes[c * kPlane + i];
    }
  }
}

}  // namespace kiln
