// The rows of bench_layers: which implementation on which problem, and one row's measurement.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/clock_watch.h"
#include "bench/layer_options.h"
#include "bench/plan_ranking.h"

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
// them. Rows that the filter drops are left out, so a ratio to one of them is void.
std::vector<LayerRow> layer_rows(const LayerOptions& options, const Device& device, PlanRanking& ranking);

// The peer's ways that are worth a row: its default, and where it has a choice the best three. What is best
// is looked up in `ranking`, or found by trying all and put there.
std::vector<std::string> peer_choices(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                                      const std::string& peer, PlanRanking& ranking);

struct LayerCounters {
  static constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();
  double cold_us = kVoid, warm_us = kVoid, spread_pct = kVoid, gbps = kVoid, tflops = kVoid,
         pct_ceiling = kVoid, pct_copy = kVoid, x_vendor_best = kVoid, x_vendor_default = kVoid,
         x_naive = kVoid, pick_ratio = kVoid;
  double workspace_bytes = kVoid, sm_mhz = kVoid, samples = kVoid;
};

struct RowResult {
  LayerCounters counters;
  std::string error;  // why there is no row, "" where there is one
  std::string note;   // what slowed the clocks meanwhile
};

// Seconds that measure() took, and for what.
struct MeasureCost {
  double judge = 0, prepare = 0, gate = 0, time = 0;
  double sum() const { return judge + prepare + gate + time; }
};

struct Contestant;

// Measures rows, all of one problem in turns.
class LayerBench {
 public:
  LayerBench(const Device& device, const Ceilings& ceilings, const TimingOptions& timing)
      : device_(device), ceilings_(ceilings), timing_(timing), watch_(device.is_cuda() ? device.uuid : "") {}
  // Rows of one group(). An implementation that failed, disagrees with the judge or is faster than the
  // hardware gets an error instead of counters.
  std::vector<RowResult> measure(const std::vector<LayerRow>& rows);
  // Instead of timing, measure() launches each gated row once for a profiler and leaves its counters void.
  void profile_only() { profile_ = true; }
  const MeasureCost& last_cost() const { return cost_; }

 private:
  void time(std::vector<Contestant*>& contestants);
  void profile(const std::vector<Contestant*>& contestants) const;
  void fill_rates(const LayerRow& row, const AnyProblem& problem, LayerCounters& counters) const;

  const Device& device_;
  Ceilings ceilings_;
  TimingOptions timing_;
  ClockWatch watch_;
  bool profile_ = false;
  MeasureCost cost_;
};

}  // namespace kiln
