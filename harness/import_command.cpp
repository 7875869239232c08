// `kiln import`: a folder of images becomes a record file that `--data` takes.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>

#include "data/record_file.h"
#include "harness/commands.h"
#include "harness/count_progress.h"
#include "harness/image_file.h"
#include "harness/image_folder.h"
#include "harness/interrupt.h"
#include "harness/number_flags.h"
#include "harness/progress.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;

struct ImportFlags {
  std::string folder, out, crop = "none";
  int size = 32, channels = 3;
  double test_fraction = 0.2;
  unsigned long long seed = 0;
  bool skip_bad = false, overwrite = false;
};

void check_out(const ImportFlags& f) {
  std::error_code error;
  const fs::path parent = fs::path(f.out).parent_path();
  if (f.out.empty() || fs::is_directory(f.out, error)) fail_usage("--out '" + f.out + "' must name a file");
  if (!parent.empty() && !fs::is_directory(parent, error)) {
    fail_usage("--out '" + f.out + "': folder " + parent.string() + " does not exist");
  }
  if (fs::exists(f.out, error) && !f.overwrite) {
    fail_usage("--out '" + f.out + "' exists; name another file, or add --overwrite to replace it");
  }
}

// The files' images in one array, and what is wrong with those that could not be read.
struct Decoded {
  std::vector<uint8_t> pixels;      // [files, size, size, channels]
  std::vector<std::string> errors;  // [files], "" for a good one
};

Image decode_one(const std::string& path, const ImportFlags& f) {
  Image image = read_image(path, f.channels);
  if (f.crop == "center") image = crop_center(image);
  return resize_image(image, f.size, f.size);
}

Decoded decode_all(const std::vector<LabelledFile>& files, const ImportFlags& f) {
  const size_t image_bytes = static_cast<size_t>(f.size) * f.size * f.channels;
  Decoded result{std::vector<uint8_t>(files.size() * image_bytes), std::vector<std::string>(files.size())};
  CountProgress progress(stderr, "images", static_cast<long long>(files.size()));
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 8)
  for (size_t i = 0; i < files.size(); ++i) {
    if (interrupted()) continue;
    try {
      const Image image = decode_one(files[i].path, f);
      std::copy(image.pixels.begin(), image.pixels.end(), result.pixels.begin() + i * image_bytes);
    } catch (const Error& error) {
      result.errors[i] = error.what();
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
#pragma omp critical
    progress.add(1);
  }
  progress.finish();
  if (failure) std::rethrow_exception(failure);
  return result;
}

// Names the files that could not be read; without --skip-bad they are an error.
void report_bad(const std::vector<std::string>& errors, bool skip_bad) {
  constexpr size_t kNamed = 10;
  std::vector<std::string> bad;
  for (const std::string& error : errors) {
    if (!error.empty()) bad.push_back(error);
  }
  if (bad.empty()) return;
  const size_t named = skip_bad ? bad.size() : std::min(bad.size(), kNamed);
  for (size_t i = 0; i < named; ++i) {
    std::fprintf(stderr, "%s: %s\n", skip_bad ? "skipped" : "bad file", bad[i].c_str());
  }
  if (skip_bad) return;
  if (bad.size() > named) std::fprintf(stderr, "bad file: %zu more\n", bad.size() - named);
  fail_usage(std::to_string(bad.size()) + " of " + std::to_string(errors.size()) +
             " files cannot be read, nothing was written; the first: " + bad.front() +
             "; --skip-bad leaves them out");
}

Dataset gather(const std::vector<size_t>& order, const std::vector<LabelledFile>& files,
               const std::vector<uint8_t>& pixels, const ImportFlags& f, size_t classes) {
  const size_t image_bytes = static_cast<size_t>(f.size) * f.size * f.channels;
  Dataset data;
  data.name = fs::weakly_canonical(f.folder).filename().string();
  data.height = data.width = f.size;
  data.channels = f.channels;
  data.classes = static_cast<int>(classes);
  data.images.reserve(order.size() * image_bytes);
  for (const size_t i : order) {
    const auto image = pixels.begin() + static_cast<std::ptrdiff_t>(i * image_bytes);
    data.images.insert(data.images.end(), image, image + static_cast<std::ptrdiff_t>(image_bytes));
    data.labels.push_back(files[i].label);
  }
  return data;
}

// The good files' indices, split.
Split split_good(const std::vector<LabelledFile>& files, const std::vector<std::string>& errors, bool given,
                 const ImportFlags& f) {
  std::vector<size_t> good;
  std::vector<int32_t> labels;
  std::vector<bool> is_test;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!errors[i].empty()) continue;
    good.push_back(i);
    labels.push_back(files[i].label);
    is_test.push_back(files[i].test);
  }
  Split split = given ? given_split(is_test, f.seed) : stratified_split(labels, f.test_fraction, f.seed);
  for (std::vector<size_t>* part : {&split.train, &split.test}) {
    for (size_t& i : *part) i = good[i];
  }
  return split;
}

void print_counts(const DataPair& data) {
  std::vector<long long> train(data.class_names.size()), test(train.size());
  for (const int32_t label : data.train.labels) ++train[static_cast<size_t>(label)];
  for (const int32_t label : data.test.labels) ++test[static_cast<size_t>(label)];
  size_t width = 5;
  for (const std::string& name : data.class_names) width = std::max(width, name.size());
  const int w = static_cast<int>(width);
  std::printf("%-*s %10s %10s\n", w, "class", "train", "test");
  for (size_t i = 0; i < train.size(); ++i) {
    std::printf("%-*s %10lld %10lld\n", w, data.class_names[i].c_str(), train[i], test[i]);
  }
  std::printf("%-*s %10lld %10lld\n", w, "total", data.train.count(), data.test.count());
}

// Every class must have training images, and the test images must not be none.
void check_split(const DataPair& data) {
  std::vector<long long> train(data.class_names.size());
  for (const int32_t label : data.train.labels) ++train[static_cast<size_t>(label)];
  for (size_t i = 0; i < train.size(); ++i) {
    if (train[i] == 0)
      fail_usage("class '" + data.class_names[i] + "' has no training image that can be read");
  }
  if (data.test.count() == 0) fail_usage("there are no test images; nothing was written");
}

int import_folder(const ImportFlags& f) {
  check_out(f);
  const ImageFolder found = scan_image_folder(f.folder);
  for (const std::string& note : found.notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  catch_interrupt();
  const Decoded decoded = decode_all(found.files, f);
  if (interrupted()) {
    std::fprintf(stderr, "interrupted: nothing was written\n");
    return kInterruptedStatus;
  }
  report_bad(decoded.errors, f.skip_bad);

  const Split split = split_good(found.files, decoded.errors, found.split_given, f);
  DataPair data;
  data.class_names = found.class_names;
  data.train = gather(split.train, found.files, decoded.pixels, f, found.class_names.size());
  data.test = gather(split.test, found.files, decoded.pixels, f, found.class_names.size());
  check_split(data);
  print_counts(data);
  write_record_file(f.out, std::move(data));
  std::printf("%s: %d x %d x %d, %zu classes, %s bytes; train with: kiln train --data %s\n", f.out.c_str(),
              f.size, f.size, f.channels, found.class_names.size(),
              with_thousands(static_cast<double>(fs::file_size(f.out))).c_str(), f.out.c_str());
  return 0;
}

}  // namespace

Command add_import_command(CLI::App& app) {
  CLI::App* sub =
      app.add_subcommand("import", "make a data set of your own from folders of PNG, JPEG, PPM images");
  auto flags = std::make_shared<ImportFlags>();
  ImportFlags& f = *flags;
  sub->add_option(
         "folder", f.folder,
         "FOLDER/CLASS/... images of each class, or FOLDER/train/CLASS/... and FOLDER/test/CLASS/...")
      ->required();
  sub->add_option("--out", f.out, "file to write, for `kiln train --data FILE`")->required();
  sub->add_option("--size", f.size,
                  "side in pixels that images are resized to (triangle filter, antialiased)")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  sub->add_option("--channels", f.channels, "3: colour; 1: grey")
      ->check(CLI::IsMember({1, 3}))
      ->capture_default_str();
  sub->add_option(
         "--crop", f.crop,
         "none: images that are not square are squeezed; center: the largest square in the middle is taken")
      ->check(CLI::IsMember({"none", "center"}))
      ->capture_default_str();
  sub->add_option("--test-fraction", f.test_fraction,
                  "share of each class that becomes test images, where there is no FOLDER/test")
      ->check([](const std::string& text) {
        const double value = finite_number(text);
        return value > 0 && value < 1 ? "" : "must be over 0 and below 1";
      })
      ->capture_default_str();
  sub->add_option("--seed", f.seed, "seed of the split and of the images' order")
      ->check(seed_number())
      ->capture_default_str();
  sub->add_flag("--skip-bad", f.skip_bad, "leave out files that cannot be read, and list them");
  sub->add_flag("--overwrite", f.overwrite, "replace FILE");
  sub->footer(
      "Examples:\n"
      "  kiln import photos --out photos.safetensors --size 64\n"
      "  kiln train --data photos.safetensors --epochs 30\n"
      "The file's format, so that other programs can read or write it: docs/data.md.");
  return {sub, [flags] { return import_folder(*flags); }};
}

}  // namespace kiln
