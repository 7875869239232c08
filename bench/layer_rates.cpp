// What a row's time means: rates, and shares of what the device can do.
#include <algorithm>
#include <cmath>

#include "bench/layer_rows.h"
#include "kernels/common/error.h"

#ifdef KILN_OP_CONV2D
#include "kernels/conv2d/conv2d.h"
#endif

namespace kiln {
namespace {

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
  const double floor = std::max(memory, std::isnan(arithmetic) ? 0 : arithmetic);
  c.pct_ceiling = 100 * floor / seconds;
  const double copy = ceilings_.copy_seconds(bytes);
  if (!std::isnan(copy)) c.pct_copy = 100 * std::max(copy, floor) / seconds;
}

}  // namespace kiln
