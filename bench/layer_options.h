// The flags of bench_layers that are not Google Benchmark's.
#pragma once

#include <string>
#include <vector>

#include "kernels/common/impl_choice.h"
#include "tests/support/shapes.h"

namespace kiln {

struct LayerOptions {
  Suite suite = Suite::kPeers;
  std::string device;  // "cuda", "cpu"; "" for CUDA where there is a GPU
  std::vector<DType> dtypes;
  std::vector<NamedProblem> problems;  // instead of a suite's
  ImplChoice impl;
  std::string filter = ".";  // Google Benchmark's own, which saves preparing rows that it drops
  bool help = false;
};

extern const char* const kLayerHelp;

// Takes kiln's flags out of argv and leaves the others. Throws Error for a malformed one.
LayerOptions parse_layer_options(int& argc, char** argv);

}  // namespace kiln
