// What this GPU can do at most: measured by probes in this process, and specified.
#pragma once

#include <limits>

#include "kernels/common/registry.h"

namespace kiln {

struct Ceilings {
  static constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();
  double read_gbps = kVoid, write_gbps = kVoid;  // measured: reading alone, writing alone
  double copy_gbps = kVoid;                      // measured: read and written bytes of a copy
  double matmul_bf16_tflops = kVoid;  // measured with cuBLAS, 6144^3; NaN where it is not compiled in
  double sm_mhz = kVoid;              // specified
  double dram_gbps = kVoid;           // specified

  // GB/s that a copy with this share of written bytes reaches: between the probes by time per byte.
  double mixed_rate(double written_share) const;
  // FLOP/s to compare with: the measured matrix rate (half of it for tf32), FMA units at full clock for fp32;
  // where there is no measurement, the specified one.
  double arithmetic_rate(const Device& device, DType dtype) const;
  // Specified dense FLOP/s of the widest unit for `dtype`; NaN for an unknown GPU.
  double specified_arithmetic_rate(const Device& device, DType dtype) const;
};

// Runs the probes on a CUDA device (about a second); all NaN for a CPU.
Ceilings measure_ceilings(const Device& device);

}  // namespace kiln
