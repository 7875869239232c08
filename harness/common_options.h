// The flags that several subcommands share, and what they name: a network, a device, a data set.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "data/dataset.h"
#include "kernels/common/device.h"
#include "kernels/common/dtype.h"
#include "kernels/common/impl_choice.h"
#include "nn/description.h"

namespace CLI {
class App;
}

namespace kiln {

struct CommonOptions {
  std::string model = "small_cnn";              // a built-in network's name, or a JSON file's path
  std::string device;                           // "cpu", "cuda", "": cuda where there is one
  std::string precision;                        // "fp32", "bf16", "": the device's default
  std::string impl;                             // ImplChoice's grammar
  std::string tune_cache;                       // a file, "none", "": the user's and those compiled in
  std::string data;                             // folder, "": the built-in set
  long long train_images = 0, test_images = 0;  // 0: all
  int threads = 0;                              // 0: OpenMP's default
};

void add_common_options(CLI::App& app, CommonOptions& options);

// A built-in network (or "<name>_smooth", its smooth twin); a file where `model` ends in .json or has a '/'.
// Throws Error.
NetworkDescription load_network(const std::string& model);

// Applies --threads, finds the device and says on `log` why it is the CPU where nobody asked for it. Call it
// before anything else asks for a device.
const Device& select_device(const CommonOptions& options, std::FILE* log);

// bf16 on CUDA, fp32 on the CPU unless named. Throws Error where the device does not train in it.
DType select_precision(const std::string& name, const Device& device);

// The --impl choice, with --tune-cache behind it; on `log` the passes that a glob skipped. Throws Error.
ImplChoice select_impl(const CommonOptions& options, const Device& device, std::FILE* log);

// The data set cut to the first train_images and test_images, its notes on `log`. Throws Error.
DataPair load_images(const CommonOptions& options, std::FILE* log);

// {"kind", "name", ...} of a device, for result files. driver may be "".
nlohmann::ordered_json device_json(const Device& device, const std::string& driver);
// {"name", "path", "train_images", ...}
nlohmann::ordered_json data_json(const DataPair& data, const std::string& path);

}  // namespace kiln
