// What the readers of CIFAR-10's and CIFAR-100's binary versions share (A. Krizhevsky, "Learning Multiple
// Layers of Features from Tiny Images", 2009): a record is one or two label bytes, the last of them the
// class, and 32 x 32 bytes each of red, green and blue, row by row.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace kiln {

struct CifarVersion {
  const char* title;               // "CIFAR-10"
  const char* name;                // "cifar10": Dataset::name, and what `--data` and scripts/fetch call it
  std::vector<std::string> files;  // of the images
  const char* subfolder;           // of the archive
  const char* archive;
  std::vector<std::string> foreign;  // files and folders that only the Python version has
  std::vector<int> label_ranges;     // one a label byte: it must be below
  int classes() const { return label_ranges.back(); }
  size_t record_bytes() const;
};

const CifarVersion& cifar10_version();
const CifarVersion& cifar100_version();

// "a, b, c"
std::string join_names(const std::vector<std::string>& names);

// exists() that throws Error for a folder that may not be searched.
bool path_exists(const std::filesystem::path& path);

// Does the folder hold a file or the subfolder of that version?
bool seems_cifar(const std::filesystem::path& folder, const CifarVersion& version);

// "; these are the Python files, ..." where the folder holds something that is nearly right, else "".
std::string cifar_hint(const std::filesystem::path& folder, const CifarVersion& version);

// `folder` or its subfolder, whichever holds all the files. Throws Error.
std::filesystem::path find_cifar_folder(const std::filesystem::path& folder, const CifarVersion& version);

// An empty set with room for `records`.
Dataset empty_cifar_set(const CifarVersion& version, size_t records);

// The bytes of a file of so many records. Throws Error, which says what a file of another size seems to be.
std::vector<uint8_t> read_cifar_file(const std::filesystem::path& path, const CifarVersion& version,
                                     size_t records);

// Appends the file's records; planes [3,32,32] become pixels [32,32,3]. Throws Error for a label out of
// range.
void append_cifar_records(const std::filesystem::path& path, const std::vector<uint8_t>& content,
                          const CifarVersion& version, Dataset* data);

}  // namespace kiln
