// The flags of bench_epoch.
#pragma once

#include <string>
#include <vector>

#include "harness/common_options.h"

namespace kiln {

struct EpochOptions {
  CommonOptions common;  // --device, --data, --impl, --tune-cache, --threads
  std::vector<std::string> networks = {"small_cnn", "resnet18", "mobilenet_v1", "mobilenet_v2"};
  std::vector<std::string> precisions;                // {}: the device's default
  std::vector<int> batches;                           // {}: by device, and of a sweep its own
  std::vector<std::string> cpu_full = {"small_cnn"};  // timed over a whole epoch on the CPU
  std::vector<std::string> sweep;                     // networks; rows of the sweep alone where there are any
  double seconds = 1;                                 // a row's budget on CUDA
  double cpu_seconds = 60;                            // of a training row on the CPU
  double energy_seconds = 5;                          // the shortest window of energy, 0: no energy
  std::vector<int> energy_batches;                    // rows with energy; {0}: all, {}: epochs at batch 512
  double sweep_seconds = 0.5;                         // of one point of a sweep
  bool augment = true;
  bool table_to_stderr = false;  // standard output is Google Benchmark's JSON or CSV
};

// Takes bench_epoch's own flags out of argv; Google Benchmark's stay. --help prints and ends the process.
// Throws Error.
EpochOptions parse_epoch_options(int* argc, char** argv);

std::vector<int> batches_for(const EpochOptions& options, const Device& device);
std::vector<int> sweep_batches(const EpochOptions& options);

}  // namespace kiln
