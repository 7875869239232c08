// One row: gate, then cold and warm time, then what they mean.
#include <algorithm>
#include <cmath>
#include <memory>

#include "bench/layer_rows.h"
#include "bench/timing.h"
#include "kernels/common/error.h"
#include "tests/support/runner.h"

#ifdef KILN_OP_CONV2D
#include "kernels/conv2d/conv2d.h"
#endif

namespace kiln {
namespace {

constexpr double kColdSeconds = 0.01, kWarmSeconds = 0.005;  // a repetition
constexpr double kL2Rotation = 3;
constexpr size_t kMostSets = 512, kMostBytes = size_t{24} << 30, kWarmLaunches = 20;

bool is_default(const std::string& impl) {
  const size_t colon = impl.find(':');
  return colon == std::string::npos || impl.substr(colon + 1) == "default";
}

// The smaller one that is a number.
double least(double a, double b) { return std::isnan(a) || b < a ? b : a; }

// Copies of a problem's buffers, together larger than the cache, each bound once.
class RotatedSets {
 public:
  RotatedSets(const LayerRow& row, const AnyProblem& problem, const Device& device, const HostTensors& inputs)
      : plan_(row.pass->plan(problem, device, row.impl)), workspace_(device.kind, plan_.workspace_bytes) {
    const std::vector<TensorSpec> specs = row.pass->tensors(problem);
    sets_.push_back(std::make_unique<TensorBuffers>(specs, device.kind, kGuardBytes));
    sets_[0]->upload(inputs);
    size_t count = 1;
    if (device.is_cuda()) {
      const size_t bytes = std::max<size_t>(sets_[0]->bytes(), 1);
      const auto wanted = static_cast<size_t>(kL2Rotation * static_cast<double>(device.l2_bytes)) / bytes + 2;
      count = std::min({wanted, kMostSets, std::max<size_t>(2, kMostBytes / bytes)});
    }
    for (size_t i = 1; i < count; ++i) {
      sets_.push_back(std::make_unique<TensorBuffers>(specs, device.kind, kGuardBytes));
      sets_.back()->copy_from(*sets_[0]);
    }
    for (const auto& set : sets_) bounds_.push_back(plan_.bind(set->pointers(), workspace_.data()));
  }
  TensorBuffers& first() { return *sets_[0]; }
  const std::vector<Bound>& bounds() const { return bounds_; }

 private:
  AnyPlan plan_;
  DeviceMemory workspace_;
  std::vector<std::unique_ptr<TensorBuffers>> sets_;
  std::vector<Bound> bounds_;
};

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

void LayerBench::fill_rates(const LayerRow& row, const AnyProblem& problem, LayerCounters& c) const {
  const double bytes = row.pass->compulsory_bytes(problem), flops = row.pass->flops(problem);
  const double seconds = c.cold_us * 1e-6;
  c.gbps = bytes / seconds * 1e-9;
  c.tflops = flops / seconds * 1e-12;
  if (!device_.is_cuda()) return;
  const double computed = flops * computed_share(row, problem);
  if (c.gbps > ceilings_.dram_gbps) {
    fail_failure("measured " + std::to_string(c.gbps) + " GB/s cold, above the specified " +
                 std::to_string(ceilings_.dram_gbps) + ": the measurement is wrong");
  }
  if (computed / seconds > ceilings_.specified_arithmetic_rate(device_, row.dtype)) {
    fail_failure("measured " + std::to_string(computed / seconds * 1e-12) +
                 " TFLOP/s, above what is specified: the measurement is wrong");
  }
  double written = 0;
  for (const TensorSpec& spec : row.pass->tensors(problem)) {
    if (spec.is_output()) written += static_cast<double>(spec.bytes());
  }
  const double memory = bytes / (ceilings_.mixed_rate(written / bytes) * 1e9);
  const double arithmetic = flops / ceilings_.arithmetic_rate(device_, row.dtype);
  c.pct_ceiling = 100 * std::max(memory, std::isnan(arithmetic) ? 0 : arithmetic) / seconds;
}

LayerCounters LayerBench::measure(const LayerRow& row) {
  const Case c = {.pass = row.pass,
                  .problem = row.problem,
                  .dtype = row.dtype,
                  .device = &device_,
                  .impl = row.impl,
                  .peer = row.peer,
                  .mode = FillMode::kReal};
  const AnyProblem problem = row.pass->parse(row.problem, row.dtype);
  const std::shared_ptr<const Reference> reference = judge(c);
  RotatedSets sets(row, problem, device_, reference->inputs);
  const OwnedStream stream(device_.kind);

  sets.bounds()[0].launch(stream.get());
  stream.synchronize();
  const std::string broken = sets.first().broken_guard();
  if (!broken.empty()) fail_failure(broken);
  const Verdict verdict = compare(c, sets.first().download(), reference->outputs);
  if (!verdict.ok) fail_failure(verdict.message);

  for (size_t i = 1; i < std::min<size_t>(sets.bounds().size(), 3); ++i)
    sets.bounds()[i].launch(stream.get());
  stream.synchronize();
  LayerCounters counters;
  const Timing cold = time_launches(sets.bounds(), device_.kind, stream.get(), kColdSeconds);
  counters.cold_us = counters.warm_us = cold.seconds * 1e6;
  counters.spread_pct = cold.spread_pct;
  if (device_.is_cuda()) {
    const std::vector<Bound> same(std::min(kWarmLaunches, sets.bounds().size()), sets.bounds()[0]);
    counters.warm_us = time_launches(same, device_.kind, stream.get(), kWarmSeconds).seconds * 1e6;
  }
  fill_rates(row, problem, counters);

  Group& group = groups_[row.group()];
  if (row.peer) {
    group.vendor_best = least(group.vendor_best, counters.cold_us);
    if (is_default(row.impl)) group.vendor_default = counters.cold_us;
    return counters;
  }
  if (row.impl == "naive" || row.impl == "cpu_naive") group.naive = counters.cold_us;
  counters.x_vendor_best = group.vendor_best / counters.cold_us;
  counters.x_vendor_default = group.vendor_default / counters.cold_us;
  counters.x_naive = group.naive / counters.cold_us;
  return counters;
}

}  // namespace kiln
