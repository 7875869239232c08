#include "harness/image_folder.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "harness/image_file.h"
#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

bool hidden(const fs::path& path) { return path.filename().string().front() == '.'; }

// Names of the folder's subfolders that are not hidden, sorted.
std::vector<std::string> subfolders(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator at(folder, error);
  if (error) fail_usage("folder " + folder.string() + " cannot be read: " + error.message());
  for (const fs::directory_entry& entry : at) {
    const std::string name = entry.path().filename().string();
    if (!hidden(entry.path()) && name != "__MACOSX" && entry.is_directory(error)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Image files below `folder`, sorted; the others are counted by the ends of their names.
std::vector<std::string> image_files(const fs::path& folder, std::map<std::string, int>* others) {
  std::vector<std::string> paths;
  std::error_code error;
  fs::recursive_directory_iterator at(folder, error), end;
  for (; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (hidden(at->path())) {
      if (at->is_directory(ignored)) at.disable_recursion_pending();
    } else if (at->is_regular_file(ignored)) {
      if (has_image_extension(at->path().string())) {
        paths.push_back(at->path().string());
      } else {
        const std::string end_of_name = at->path().extension().string();
        ++(*others)[end_of_name.empty() ? "no extension" : end_of_name];
      }
    }
  }
  if (error) fail_usage("folder " + folder.string() + " cannot be read: " + error.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

void require_utf8(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    try {
      nlohmann::json(name).dump();
    } catch (const nlohmann::json::exception&) {
      fail_usage("folder '" + name + "': its name is not UTF-8");
    }
  }
}

// Adds the images of each class subfolder of `root`; classes without any are returned.
std::vector<std::string> add_classes(const fs::path& root, bool test, ImageFolder* found,
                                     std::map<std::string, int>* others) {
  std::vector<std::string> empty;
  for (size_t label = 0; label < found->class_names.size(); ++label) {
    const fs::path folder = root / found->class_names[label];
    if (!fs::is_directory(folder)) {
      empty.push_back(found->class_names[label]);
      continue;
    }
    const std::vector<std::string> paths = image_files(folder, others);
    if (paths.empty()) empty.push_back(found->class_names[label]);
    for (const std::string& path : paths) {
      found->files.push_back({path, static_cast<int32_t>(label), test});
    }
  }
  return empty;
}

// Fisher-Yates with Philox draws of (seed, salt, position).
template <class T>
void shuffle(std::vector<T>* values, uint64_t seed, uint32_t salt) {
  for (size_t i = values->size(); i-- > 1;) {
    const Philox4 draw = philox(seed, PhiloxStream::kShuffle, i, salt);
    const uint64_t bits = static_cast<uint64_t>(draw.v[0]) << 32 | draw.v[1];
    const auto j = static_cast<size_t>(static_cast<unsigned __int128>(bits) * (i + 1) >> 64);
    std::swap((*values)[i], (*values)[j]);
  }
}

// Uses of the draws, beside one a class.
constexpr uint32_t kTrainOrder = 1u << 31, kTestOrder = kTrainOrder + 1;

void shuffle_both(Split* split, uint64_t seed) {
  shuffle(&split->train, seed, kTrainOrder);
  shuffle(&split->test, seed, kTestOrder);
}

}  // namespace

ImageFolder scan_image_folder(const std::string& folder) {
  std::error_code error;
  const fs::path root = folder;
  if (!fs::exists(root, error)) fail_usage("folder " + folder + " does not exist");
  if (!fs::is_directory(root, error)) fail_usage(folder + " is not a folder");
  ImageFolder found;
  std::map<std::string, int> others;
  const std::vector<std::string> names = subfolders(root);
  const std::string test = contains(names, "test") ? "test" : contains(names, "val") ? "val" : "";
  found.split_given = contains(names, "train") && !subfolders(root / "train").empty();
  if (found.split_given && test.empty()) {
    fail_usage(folder + " has train/ with class subfolders, but neither test/ nor val/; give " +
               (root / "train").string() + " to have it split");
  }
  found.class_names = found.split_given ? subfolders(root / "train") : names;
  if (found.class_names.empty()) {
    fail_usage(folder +
               " has no subfolders; images are expected in FOLDER/CLASS/, or in FOLDER/train/CLASS/ "
               "and FOLDER/test/CLASS/");
  }
  require_utf8(found.class_names);
  require_utf8({fs::weakly_canonical(root).filename().string()});
  const std::vector<std::string> empty =
      add_classes(found.split_given ? root / "train" : root, false, &found, &others);
  if (!empty.empty()) {
    fail_usage("class '" + empty.front() + "' of " + folder + " has no " +
               (found.split_given ? "training images" : "images") + " (PNG, JPEG, PPM or PGM)" +
               (empty.size() > 1 ? "; " + std::to_string(empty.size() - 1) + " more have none either" : ""));
  }
  if (found.split_given) {
    for (const std::string& name : subfolders(root / test)) {
      if (!contains(found.class_names, name)) {
        fail_usage((root / test / name).string() + " is a class that " + (root / "train").string() +
                   " lacks");
      }
    }
    for (const std::string& name : add_classes(root / test, true, &found, &others)) {
      found.notes.push_back("class '" + name + "' has no test images");
    }
    for (const std::string& name : names) {
      if (name != "train" && name != test) found.notes.push_back((root / name).string() + " is left out");
    }
  }
  for (const auto& [name, count] : others) {
    found.notes.push_back(std::to_string(count) + " files left out that are not named as images (" + name +
                          ")");
  }
  return found;
}

Split stratified_split(const std::vector<int32_t>& labels, double test_fraction, uint64_t seed) {
  std::map<int32_t, std::vector<size_t>> by_label;
  for (size_t i = 0; i < labels.size(); ++i) by_label[labels[i]].push_back(i);
  Split split;
  for (auto& [label, members] : by_label) {
    shuffle(&members, seed, static_cast<uint32_t>(label));
    const auto n = static_cast<long long>(members.size());
    const long long rounded = std::llround(static_cast<double>(n) * test_fraction);
    const long long test = n == 1 ? 0 : std::clamp<long long>(rounded, 1, n - 1);
    split.test.insert(split.test.end(), members.begin(), members.begin() + test);
    split.train.insert(split.train.end(), members.begin() + test, members.end());
  }
  shuffle_both(&split, seed);
  return split;
}

Split given_split(const std::vector<bool>& is_test, uint64_t seed) {
  Split split;
  for (size_t i = 0; i < is_test.size(); ++i) (is_test[i] ? split.test : split.train).push_back(i);
  shuffle_both(&split, seed);
  return split;
}

}  // namespace kiln
