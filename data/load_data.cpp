#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "data/cifar_files.h"
#include "data/dataset.h"
#include "data/record_file.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNeeded =
    "needed are CIFAR-10's binary files (data_batch_1.bin to data_batch_5.bin, test_batch.bin), CIFAR-100's "
    "(train.bin, test.bin), or a record file that `kiln import` wrote";

// Where scripts/fetch puts a data set: the same rule as there.
fs::path fetched_folder(const std::string& name) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache && fs::path(cache).is_absolute()) return fs::path(cache) / "kiln" / name;
  return fs::path(home ? home : "/") / ".cache" / "kiln" / name;
}

// "a, b, c and 5 more", in name order
std::string some_entries(const fs::path& folder) {
  constexpr size_t kShown = 4;
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string() + (at->is_directory(error) ? "/" : ""));
  }
  if (names.empty()) return "nothing";
  std::sort(names.begin(), names.end());
  const size_t more = names.size() > kShown ? names.size() - kShown : 0;
  names.resize(names.size() - more);
  return join_names(names) + (more > 0 ? " and " + std::to_string(more) + " more" : "");
}

bool has_subfolder(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (at->is_directory(error)) return true;
  }
  return false;
}

// Throws Error for what is taken for a record file by mistake.
DataPair load_file(const std::string& path) {
  const std::string name = fs::path(path).filename().string();
  for (const CifarVersion* version : {&cifar10_version(), &cifar100_version()}) {
    if (name == version->archive) fail_usage(path + " is an archive: unpack it and give the folder");
    if (std::count(version->files.begin(), version->files.end(), name) > 0) {
      fail_usage(path + " is one of " + version->title + "'s files: give the folder");
    }
  }
  return read_record_file(path);
}

DataPair load_folder(const fs::path& folder) {
  std::error_code error;
  const fs::directory_iterator readable(folder, error);
  if (error) fail_usage("cannot read folder " + folder.string() + ": " + error.message());
  const bool ten = seems_cifar(folder, cifar10_version()), hundred = seems_cifar(folder, cifar100_version());
  if (ten && hundred) {
    fail_usage(folder.string() + " holds files of both CIFAR-10 and CIFAR-100; give a folder of one of them");
  }
  if (ten) return load_cifar10(folder.string());
  if (hundred) return load_cifar100(folder.string());
  std::string hint = cifar_hint(folder, cifar10_version());
  if (hint.empty()) hint = cifar_hint(folder, cifar100_version());
  if (hint.empty() && has_subfolder(folder)) {
    hint = "; a folder with a subfolder of images for each class becomes a record file with `kiln import`";
  }
  fail_usage("no data set in " + folder.string() + ": it holds " + some_entries(folder) + "; " + kNeeded +
             hint);
}

}  // namespace

DataPair load_data(const std::string& data) {
  if (data.empty()) return make_builtin_data();
  std::error_code error;
  if (path_exists(data)) {
    return fs::is_directory(data, error) ? load_folder(data) : load_file(data);
  }
  if (data != cifar10_version().name && data != cifar100_version().name) {
    fail_usage("data " + data + " does not exist; " + kNeeded +
               ", or cifar10 or cifar100 for what scripts/fetch got");
  }
  const fs::path fetched = fetched_folder(data);
  if (!path_exists(fetched)) {
    fail_usage("data " + data + " is not here: " + fetched.string() + " does not exist; `scripts/fetch " +
               data + "` downloads it");
  }
  return data == cifar10_version().name ? load_cifar10(fetched.string()) : load_cifar100(fetched.string());
}

}  // namespace kiln
