// The rows of one problem: each is gated, then all are timed in turns, cold and warm, then what that means.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "bench/contestant.h"
#include "bench/layer_rows.h"
#include "bench/timing.h"
#include "kernels/common/error.h"
#include "tests/support/runner.h"

#ifdef KILN_WITH_CUDA
#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include "kernels/common/check.h"
#endif

namespace kiln {
namespace {

constexpr int kTries = 3;    // where something disturbed the clocks
constexpr double kRest = 2;  // where the power cap lowered them: a third of the power, averaged over samples
constexpr size_t kWarmLaunches = 20;
constexpr double kWarmUpSeconds = 0.02;  // the clocks follow the power that the kernels draw

bool is_default(const std::string& impl) {
  const size_t colon = impl.find(':');
  return colon == std::string::npos || impl.substr(colon + 1) == "default";
}

// The smaller one that is a number.
double least(double a, double b) { return std::isnan(a) || b < a ? b : a; }

// Adds the time since the last lap to a sum.
class Laps {
 public:
  void lap(double* seconds) {
    const Clock::time_point now = Clock::now();
    *seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace

void LayerBench::time(std::vector<Contestant*>& contestants) {
  const OwnedStream stream(device_.kind);
  const auto in_turns = [&](const std::vector<Contestant*>& chosen, const TimingOptions& timing,
                            auto bounds_of) {
    std::vector<LaunchSampler> samplers;
    for (const Contestant* c : chosen) {
      samplers.emplace_back(bounds_of(*c), device_.kind, stream.get(), timing.sample_seconds);
    }
    return time_in_turns(samplers, timing, [&] { watch_.look(); });
  };
  const auto fill = [&](Contestant& c, const Timing& cold, double warm_seconds) {
    LayerCounters& counters = c.result->counters;
    counters.cold_us = cold.seconds * 1e6;
    counters.warm_us = warm_seconds * 1e6;
    counters.spread_pct = cold.spread_pct;
    counters.samples = cold.samples;
    counters.sm_mhz = watch_.sm_mhz();
    counters.workspace_bytes = static_cast<double>(c.plan.workspace_bytes);
    c.result->note = watch_.slowdown();
  };

  // The naive kernel is slow and only gives a ratio: three launches, or a second.
  TimingOptions brief = timing_;
  brief.sample_seconds = 0;
  brief.fewest = brief.behind = brief.most = 3;
  brief.most_seconds = 1;
  std::vector<Contestant*> others;
  for (Contestant* c : contestants) {
    if (!c->naive) {
      others.push_back(c);
      continue;
    }
    watch_.start();
    const Timing alone = in_turns(
        {c}, brief, [](const Contestant& one) { return std::span<const Bound>(one.bounds.data(), 1); })[0];
    fill(*c, alone, alone.seconds);
  }
  if (others.empty()) return;

  TimingOptions cold_timing = timing_, warm_timing = timing_;
  if (device_.is_cuda()) cold_timing.warm_up_seconds = kWarmUpSeconds;
  warm_timing.most_seconds = timing_.most_seconds / 2;
  warm_timing.fewest = std::min(timing_.fewest, timing_.behind);
  for (int attempt = 0; attempt < kTries; ++attempt) {
    watch_.start();
    const std::vector<Timing> cold =
        in_turns(others, cold_timing, [](const Contestant& c) { return std::span<const Bound>(c.bounds); });
    std::vector<Timing> warm = cold;
    if (device_.is_cuda()) {
      std::vector<std::vector<Bound>> same;
      for (const Contestant* c : others)
        same.emplace_back(std::min(kWarmLaunches, c->bounds.size()), c->bounds[0]);
      size_t next = 0;
      warm = in_turns(others, warm_timing,
                      [&](const Contestant&) { return std::span<const Bound>(same[next++]); });
    }
    for (size_t i = 0; i < others.size(); ++i) {
      fill(*others[i], cold[i], warm[i].seconds);
      std::string& note = others[i]->result->note;
      if (cold_timing.rest > 0) note += note.empty() ? "rested" : ", rested";
    }
    if (watch_.power_capped() && cold_timing.rest == 0) {
      cold_timing.rest = warm_timing.rest = kRest;
    } else if (!watch_.disturbed()) {
      break;
    }
  }
}

void LayerBench::profile(const std::vector<Contestant*>& contestants) const {
#ifdef KILN_WITH_CUDA
  const OwnedStream stream(device_.kind);
  if (device_.is_cuda()) check_cuda(cudaProfilerStart(), "cudaProfilerStart");
  for (const Contestant* c : contestants) {
    nvtxRangePushA(c->range.c_str());
    c->bounds.back().launch(stream.get());
    nvtxRangePop();
  }
  stream.synchronize();
  if (device_.is_cuda()) check_cuda(cudaProfilerStop(), "cudaProfilerStop");
#else
  (void)contestants;
#endif
}

std::vector<RowResult> LayerBench::measure(const std::vector<LayerRow>& rows) {
  std::vector<RowResult> results(rows.size());
  const LayerRow& any = rows.at(0);
  const auto as_case = [&](const LayerRow& row) {
    return Case{.pass = row.pass,
                .problem = row.problem,
                .dtype = row.dtype,
                .device = &device_,
                .impl = row.impl,
                .peer = row.peer,
                .mode = FillMode::kReal,
                .cpu_judge_bytes = kCpuJudgeBytesTimed};
  };
  const AnyProblem problem = any.pass->parse(any.problem, any.dtype);
  cost_ = {};
  Laps laps;
  std::optional<RotatedBuffers> buffers;
  std::vector<std::unique_ptr<Contestant>> contestants;
  try {
    const std::shared_ptr<const Reference> reference = judge(as_case(any));
    laps.lap(&cost_.judge);
    buffers.emplace(any.pass->tensors(problem), device_, reference->inputs);
    std::vector<PlannedRow> planned = plan_rows(rows, problem, device_);
    laps.lap(&cost_.prepare);
    for (size_t i = 0; i < rows.size(); ++i) {
      results[i].error = planned[i].error;
      if (!results[i].error.empty()) continue;
      try {
        auto contestant =
            std::make_unique<Contestant>(rows[i], std::move(planned[i].plan), device_, *buffers, &results[i]);
        contestant->range =
            rows[i].name() + " " + std::to_string(std::llround(any.pass->compulsory_bytes(problem)));
        laps.lap(&cost_.prepare);
        contestant->gate(as_case(rows[i]), *buffers, *reference);
        contestants.push_back(std::move(contestant));
      } catch (const std::exception& error) {
        results[i].error = error.what();
      }
      laps.lap(&cost_.gate);
    }
    std::vector<Contestant*> gated;
    for (const auto& c : contestants) gated.push_back(c.get());
    if (profile_) {
      profile(gated);
      return results;
    }
    time(gated);
    laps.lap(&cost_.time);
  } catch (const std::exception& error) {
    for (RowResult& result : results) {
      if (result.error.empty()) result.error = error.what();
    }
    return results;
  }

  const std::vector<std::string> choices = any.pass->choices(problem, device_);
  const std::string picked = choices.empty() ? "" : choices.front().substr(0, choices.front().find(':'));
  double vendor_best = LayerCounters::kVoid, vendor_default = vendor_best, naive = vendor_best,
         fastest = vendor_best;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!results[i].error.empty()) continue;
    try {
      fill_rates(rows[i], problem, results[i].counters);
    } catch (const Error& error) {
      results[i] = {.counters = {}, .error = error.what(), .note = ""};
      continue;
    }
    const double us = results[i].counters.cold_us;
    if (rows[i].peer) vendor_best = least(vendor_best, us);
    if (!rows[i].peer) fastest = least(fastest, us);
    if (rows[i].peer && is_default(rows[i].impl)) vendor_default = us;
    if (is_naive(rows[i].impl)) naive = us;
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    LayerCounters& c = results[i].counters;
    if (rows[i].peer || !results[i].error.empty()) continue;
    c.x_vendor_best = vendor_best / c.cold_us;
    c.x_vendor_default = vendor_default / c.cold_us;
    c.x_naive = naive / c.cold_us;
    if (rows[i].impl == picked) c.pick_ratio = c.cold_us / fastest;
  }
  return results;
}

}  // namespace kiln
