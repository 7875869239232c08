// The rows of bench_layers: which implementation on which problem, and one row's measurement.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/layer_options.h"

namespace kiln {

struct LayerRow {
  const PassInfo* pass = nullptr;
  std::string label, problem;  // the problem without the op
  DType dtype = DType::kF32;
  std::string impl;  // "name" or "name:config"
  bool peer = false;
  std::string group() const;  // "conv2d_fwd/n512_h32_w32_c64_k64_r3/bf16": what is compared with each other
  std::string name() const { return group() + "/" + impl; }
};

// Rows in the order to run them: of each problem the peers and the naive kernel first, since ratios refer to
// them.
std::vector<LayerRow> layer_rows(const LayerOptions& options, const Device& device);

// The peer's ways that are worth a row: its default, and where it has a choice the best three, which takes
// trying all.
std::vector<std::string> peer_choices(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                                      const std::string& peer);

struct LayerCounters {
  static constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();
  double cold_us = kVoid, warm_us = kVoid, spread_pct = kVoid, gbps = kVoid, tflops = kVoid,
         pct_ceiling = kVoid, x_vendor_best = kVoid, x_vendor_default = kVoid, x_naive = kVoid;
};

// Measures rows one by one and remembers what later rows are compared with.
class LayerBench {
 public:
  LayerBench(const Device& device, const Ceilings& ceilings) : device_(device), ceilings_(ceilings) {}
  // Throws Error where the implementation failed, disagrees with the judge or is faster than the hardware.
  LayerCounters measure(const LayerRow& row);

 private:
  struct Group {
    double vendor_best = LayerCounters::kVoid, vendor_default = LayerCounters::kVoid,
           naive = LayerCounters::kVoid;
  };
  void fill_rates(const LayerRow& row, const AnyProblem& problem, LayerCounters& counters) const;

  const Device& device_;
  const Ceilings& ceilings_;
  std::map<std::string, Group> groups_;
};

}  // namespace kiln
