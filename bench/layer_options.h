// The flags of bench_layers that are not Google Benchmark's.
#pragma once

#include <string>
#include <vector>

#include "bench/timing.h"
#include "kernels/common/impl_choice.h"
#include "tests/support/shapes.h"

namespace kiln {

struct LayerOptions {
  Suite suite = Suite::kPeers;
  int shard = 0, shards = 1;  // every shards-th problem, from the shard-th on
  std::string device;         // "cuda", "cpu"; "" for CUDA where there is a GPU
  std::vector<DType> dtypes;
  std::vector<NamedProblem> problems;  // instead of a suite's
  ImplChoice impl;
  TimingOptions timing;
  double max_seconds = 0;    // timing.most_seconds; 0: by device
  std::string cudnn_plans;   // file of the ranking of cuDNN's plans
  std::string tune_cache;    // of `kiln tune`: a choice with a config gets a row of its own; "": none
  bool profile = false;      // launch each row once inside the profiler's range instead of timing it
  std::string filter = ".";  // Google Benchmark's own: rows that it drops are not prepared
};

// Takes kiln's flags out of argv and leaves Google Benchmark's. Throws Error for a malformed one; prints the
// help and exits for --help.
LayerOptions parse_layer_options(int& argc, char** argv);

// "conv2d.fwd:n512_h32_w32_c64_k64_r3" for one pass, "conv2d:..." for all of an op, "@FILE" for one a line
// ('#' begins a comment). Throws Error for what is none.
std::vector<NamedProblem> problems_from_text(const std::string& text);

}  // namespace kiln
