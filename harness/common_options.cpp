#include "harness/common_options.h"

#include <omp.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/number_flags.h"
#include "harness/tuning.h"
#include "kernels/common/error.h"

// OpenBLAS keeps its own thread count; weak, so that a CPU path without it links too.
extern "C" void openblas_set_num_threads(int threads) __attribute__((weak));

namespace kiln {
namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The default size of the built-in set, as data/dataset.h states it.
constexpr long long kBuiltinTrain = 10000, kBuiltinTest = 2000;
constexpr int kMostThreads = 4096;  // OpenMP's runtime dies of many more

void keep_first(Dataset& set, long long images) {
  if (images <= 0 || images >= set.count()) return;
  set.labels.resize(images);
  set.images.resize(static_cast<size_t>(images) * set.height * set.width * set.channels);
}

}  // namespace

void add_common_options(CLI::App& app, CommonOptions& o) {
  std::string models;
  for (const std::string& name : builtin_network_names()) models += name + ", ";
  app.add_option("--model", o.model,
                 "network: " + models + "or a JSON file's path (format: docs/networks.md)")
      ->capture_default_str();
  app.add_option("--device", o.device, "cpu or cuda (default: cuda where there is a GPU)");
  app.add_option(
      "--precision", o.precision,
      "fp32, or bf16 on cuda: bf16 tensors, fp32 sums and weights (default: bf16 on cuda, fp32 on cpu)");
  app.add_option("--impl", o.impl,
                 "choose implementations: '<op>.<pass>=<name>[:<config>],...', globs allowed, for example "
                 "'conv2d.*=naive'; `kiln info --impls` lists them");
  app.add_option(
      "--tune-cache", o.tune_cache,
      "file of `kiln tune` to choose implementations by where --impl is silent, or none (default: the "
      "user's own over what is compiled in for this GPU)");
  app.add_option("--data", o.data,
                 "cifar10 or cifar100 (scripts/fetch downloads them), a folder with the binary files of "
                 "either, or a file that `kiln import` wrote (default: a built-in set that needs no file)");
  app.add_option(
         "--train-images", o.train_images,
         "use the first N training images; the built-in set is made with N (default: all; built-in: 10000)")
      ->check(above_zero());
  app.add_option("--test-images", o.test_images,
                 "the same for the test images (default: all; built-in: 2000)")
      ->check(above_zero());
  app.add_option("--threads", o.threads, "CPU threads (default: OMP_NUM_THREADS, else all cores)")
      ->check(above_zero());
}

NetworkDescription load_network(const std::string& model) {
  if (!ends_with(model, ".json") && model.find('/') == std::string::npos) return builtin_network(model);
  std::ifstream in(model, std::ios::binary);
  if (!in || std::filesystem::is_directory(model))
    fail_usage("--model '" + model + "': the file cannot be read");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  try {
    return parse_network(text);
  } catch (const Error& e) {
    throw Error("'" + model + "': " + e.what(), e.kind());
  }
}

const Device& select_device(const CommonOptions& o, std::FILE* log) {
  if (o.threads > kMostThreads) {
    fail_usage("--threads " + std::to_string(o.threads) + ": at most " + std::to_string(kMostThreads));
  }
  if (o.threads > 0) {
    omp_set_num_threads(o.threads);
    if (openblas_set_num_threads) openblas_set_num_threads(o.threads);
  }
  if (!o.device.empty()) return device_from_name(o.device);
  if (cuda_available()) return cuda_device();
  std::fprintf(log, "device: cpu (no CUDA device: %s)\n", cuda_unavailable_reason().c_str());
  return cpu_device();
}

DType select_precision(const std::string& name, const Device& device) {
  if (name.empty()) return device.is_cuda() ? DType::kBF16 : DType::kF32;
  if (name != "fp32" && name != "bf16") {
    fail_usage("--precision: " + unknown_name_message("precision", name, {"fp32", "bf16"}));
  }
  if (name == "bf16" && !device.is_cuda())
    fail_usage("--precision bf16 needs --device cuda; on the CPU use fp32");
  return dtype_from_name(name);
}

ImplChoice select_impl(const CommonOptions& o, const Device& device, std::FILE* log) {
  ImplChoice choice(o.impl);
  std::string skipped;
  for (const std::string& pass : choice.skipped(device.kind)) skipped += (skipped.empty() ? "" : ", ") + pass;
  if (!skipped.empty()) {
    std::fprintf(log, "note: --impl '%s' leaves these to the default, they have none of that name: %s\n",
                 o.impl.c_str(), skipped.c_str());
  }
  use_tuned(load_tuned(o.tune_cache), device, &choice);
  return choice;
}

DataPair load_images(const CommonOptions& o, std::FILE* log) {
  DataPair data = o.data.empty() ? make_builtin_data(o.train_images > 0 ? o.train_images : kBuiltinTrain,
                                                     o.test_images > 0 ? o.test_images : kBuiltinTest)
                                 : load_data(o.data);
  for (const std::string& note : data.notes) std::fprintf(log, "note: %s\n", note.c_str());
  keep_first(data.train, o.train_images);
  keep_first(data.test, o.test_images);
  return data;
}

nlohmann::ordered_json device_json(const Device& d, const std::string& driver) {
  nlohmann::ordered_json json = {{"kind", d.is_cuda() ? "cuda" : "cpu"}, {"name", d.name}};
  if (d.is_cuda()) {
    json["uuid"] = d.uuid;
    json["sm"] = d.sm;
    json["memory_bytes"] = d.memory_bytes;
    if (!driver.empty()) json["driver"] = driver;
  } else {
    json["threads"] = d.threads;
    json["isa"] = d.isa;
  }
  return json;
}

nlohmann::ordered_json data_json(const DataPair& data, const std::string& path) {
  nlohmann::ordered_json json = {{"name", data.train.name}};
  if (!path.empty()) json["path"] = path;
  json["train_images"] = data.train.count();
  json["test_images"] = data.test.count();
  json["height"] = data.train.height;
  json["width"] = data.train.width;
  json["channels"] = data.train.channels;
  json["classes"] = data.train.classes;
  if (!data.class_names.empty()) json["class_names"] = data.class_names;
  return json;
}

}  // namespace kiln
