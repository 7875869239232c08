// The rows of one problem: each is gated, then all are timed in turns, cold and warm, then what that means.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "bench/layer_rows.h"
#include "bench/timing.h"
#include "kernels/common/error.h"
#include "tests/support/runner.h"

#ifdef KILN_WITH_CUDA
#include <cuda_profiler_api.h>

#include "kernels/common/check.h"
#endif
#ifdef KILN_OP_CONV2D
#include "kernels/conv2d/conv2d.h"
#endif

namespace kiln {
namespace {

constexpr int kTries = 3;  // where something disturbed the clocks
constexpr double kL2Rotation = 3;
constexpr size_t kMostSets = 512, kMostBytes = size_t{24} << 30, kWarmLaunches = 20;

bool is_default(const std::string& impl) {
  const size_t colon = impl.find(':');
  return colon == std::string::npos || impl.substr(colon + 1) == "default";
}

// The smaller one that is a number.
double least(double a, double b) { return std::isnan(a) || b < a ? b : a; }

bool is_naive(const std::string& impl) { return impl == "naive" || impl == "cpu_naive"; }

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

// Copies of a problem's tensors, together larger than the cache; all implementations run on the same.
std::vector<std::unique_ptr<TensorBuffers>> rotated_sets(const std::vector<TensorSpec>& specs,
                                                         const Device& device, const HostTensors& inputs) {
  std::vector<std::unique_ptr<TensorBuffers>> sets;
  sets.push_back(std::make_unique<TensorBuffers>(specs, device.kind, kGuardBytes));
  sets[0]->upload(inputs);
  size_t count = 1;
  if (device.is_cuda()) {
    const size_t bytes = std::max<size_t>(sets[0]->bytes(), 1);
    const auto wanted = static_cast<size_t>(kL2Rotation * static_cast<double>(device.l2_bytes)) / bytes + 2;
    count = std::min({wanted, kMostSets, std::max<size_t>(2, kMostBytes / bytes)});
  }
  for (size_t i = 1; i < count; ++i) {
    sets.push_back(std::make_unique<TensorBuffers>(specs, device.kind, kGuardBytes));
    sets.back()->copy_from(*sets[0]);
  }
  return sets;
}

// The share of a convolution's taps that do not fall on padding: a kernel may leave the others out.
double computed_share(const LayerRow& row, const AnyProblem& problem) {
#ifdef KILN_OP_CONV2D
  if (row.pass->op == "conv2d") {
    const auto& p = *static_cast<const Conv2dProblem*>(problem.value.get());
    const auto inside = [](int outputs, int filter, int stride, int pad, int size) {
      double taps = 0;
      for (int o = 0; o < outputs; ++o) {
        for (int f = 0; f < filter; ++f) taps += o * stride + f >= pad && o * stride + f - pad < size;
      }
      return taps / outputs / filter;
    };
    return inside(p.p(), p.r, p.stride_h, p.pad_h, p.h) * inside(p.q(), p.s, p.stride_w, p.pad_w, p.w);
  }
#endif
  (void)row;
  (void)problem;
  return 1;
}

}  // namespace

// One implementation, bound to every set.
struct LayerBench::Contestant {
  RowResult* result = nullptr;
  bool naive = false;
  AnyPlan plan;
  DeviceMemory workspace;
  std::vector<Bound> bounds;

  Contestant(const LayerRow& row, const AnyProblem& problem, const Device& device,
             const std::vector<std::unique_ptr<TensorBuffers>>& sets)
      : naive(is_naive(row.impl)),
        plan(row.pass->plan(problem, device, row.impl)),
        workspace(device.kind, plan.workspace_bytes) {
    for (const auto& set : sets) bounds.push_back(plan.bind(set->pointers(), workspace.data()));
  }
};

void LayerBench::fill_rates(const LayerRow& row, const AnyProblem& problem, LayerCounters& c) const {
  const double bytes = row.pass->compulsory_bytes(problem), flops = row.pass->flops(problem);
  const double seconds = c.cold_us * 1e-6;
  c.gbps = bytes / seconds * 1e-9;
  c.tflops = flops / seconds * 1e-12;
  const double computed = flops * computed_share(row, problem);
  if (c.gbps > ceilings_.dram_gbps) {
    fail_failure("measured " + std::to_string(c.gbps) + " GB/s cold, above the specified " +
                 std::to_string(ceilings_.dram_gbps) + ": the measurement is wrong");
  }
  if (computed / seconds > ceilings_.specified_arithmetic_rate(device_, row.dtype)) {
    fail_failure("measured " + std::to_string(computed / seconds * 1e-12) +
                 " TFLOP/s, above what is specified: the measurement is wrong");
  }
  if (std::isnan(ceilings_.copy_gbps)) return;
  double written = 0;
  for (const TensorSpec& spec : row.pass->tensors(problem)) {
    if (spec.is_output()) written += static_cast<double>(spec.bytes());
  }
  const double memory = bytes / (ceilings_.mixed_rate(written / bytes) * 1e9);
  const double arithmetic = flops / ceilings_.arithmetic_rate(device_, row.dtype);
  c.pct_ceiling = 100 * std::max(memory, std::isnan(arithmetic) ? 0 : arithmetic) / seconds;
}

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
  brief.fewest = brief.most = 3;
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

  for (int attempt = 0; attempt < kTries; ++attempt) {
    watch_.start();
    const std::vector<Timing> cold =
        in_turns(others, timing_, [](const Contestant& c) { return std::span<const Bound>(c.bounds); });
    std::vector<Timing> warm = cold;
    if (device_.is_cuda()) {
      TimingOptions timing = timing_;
      timing.most_seconds = timing_.most_seconds / 2;
      std::vector<std::vector<Bound>> same;
      for (const Contestant* c : others)
        same.emplace_back(std::min(kWarmLaunches, c->bounds.size()), c->bounds[0]);
      size_t next = 0;
      warm =
          in_turns(others, timing, [&](const Contestant&) { return std::span<const Bound>(same[next++]); });
    }
    for (size_t i = 0; i < others.size(); ++i) fill(*others[i], cold[i], warm[i].seconds);
    if (!watch_.disturbed()) break;
  }
}

void LayerBench::profile(const std::vector<Contestant*>& contestants) const {
#ifdef KILN_WITH_CUDA
  const OwnedStream stream(device_.kind);
  if (device_.is_cuda()) check_cuda(cudaProfilerStart(), "cudaProfilerStart");
  for (const Contestant* c : contestants) c->bounds.back().launch(stream.get());
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
                .mode = FillMode::kReal};
  };
  const AnyProblem problem = any.pass->parse(any.problem, any.dtype);
  cost_ = {};
  Laps laps;
  std::vector<std::unique_ptr<TensorBuffers>> sets;
  std::vector<std::unique_ptr<Contestant>> contestants;
  try {
    const std::shared_ptr<const Reference> reference = judge(as_case(any));
    laps.lap(&cost_.judge);
    sets = rotated_sets(any.pass->tensors(problem), device_, reference->inputs);
    laps.lap(&cost_.prepare);
    const OwnedStream stream(device_.kind);
    for (size_t i = 0; i < rows.size(); ++i) {
      try {
        auto contestant = std::make_unique<Contestant>(rows[i], problem, device_, sets);
        contestant->result = &results[i];
        laps.lap(&cost_.prepare);
        sets[0]->upload(reference->inputs);
        contestant->bounds[0].launch(stream.get());
        stream.synchronize();
        const std::string broken = sets[0]->broken_guard();
        if (!broken.empty()) fail_failure(broken);
        const Verdict verdict = compare(as_case(rows[i]), sets[0]->download(), reference->outputs);
        if (!verdict.ok) fail_failure(verdict.message);
        for (size_t s = 1; s < std::min<size_t>(contestant->bounds.size(), 3); ++s) {
          contestant->bounds[s].launch(stream.get());
        }
        stream.synchronize();
        contestants.push_back(std::move(contestant));
        laps.lap(&cost_.gate);
      } catch (const std::exception& error) {
        results[i].error = error.what();
      }
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

  double vendor_best = LayerCounters::kVoid, vendor_default = vendor_best, naive = vendor_best;
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
    if (rows[i].peer && is_default(rows[i].impl)) vendor_default = us;
    if (is_naive(rows[i].impl)) naive = us;
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    LayerCounters& c = results[i].counters;
    if (rows[i].peer || !results[i].error.empty()) continue;
    c.x_vendor_best = vendor_best / c.cold_us;
    c.x_vendor_default = vendor_default / c.cold_us;
    c.x_naive = naive / c.cold_us;
  }
  return results;
}

}  // namespace kiln
