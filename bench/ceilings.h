// What this device can do at most: measured by probes in this process, and specified.
#pragma once

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/registry.h"

namespace kiln {

struct Ceilings {
  static constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();
  // Measured, DRAM: reading alone, writing alone, read and written bytes of a copy.
  double read_gbps = kVoid, write_gbps = kVoid, copy_gbps = kVoid;
  double l2_read_gbps = kVoid;  // measured: reading what lies in L2
  // Measured: microseconds of a plain copy of so many MiB, read and written together, cold. What a launch's
  // ramp and tail leave of copy_gbps.
  static constexpr std::array<int, 7> kCopyMib = {4, 8, 16, 32, 64, 128, 256};
  std::array<double, kCopyMib.size()> copy_us = {kVoid, kVoid, kVoid, kVoid, kVoid, kVoid, kVoid};
  // Measured with cuBLAS at 6144^3 (fp32: 4096^3, or FMA instructions alone where they do more); NaN where it
  // is not compiled in.
  double matmul_bf16_tflops = kVoid, matmul_fp16_tflops = kVoid, matmul_tf32_tflops = kVoid,
         fma_fp32_tflops = kVoid;
  double launch_us = kVoid;      // measured: an empty kernel, one of many launched one after another
  double graph_node_us = kVoid;  // measured: the same as a node of a graph
  double sm_mhz = kVoid;         // specified: the highest clock
  double dram_gbps = kVoid;      // specified

  // GB/s that a copy with this share of written bytes reaches: between the probes by time per byte.
  double mixed_rate(double written_share) const;
  // Seconds of a plain copy that reads and writes `bytes` in all: between the probes a straight line of the
  // logarithms; below them the first line goes on, above them the last rate. NaN where nothing was measured.
  double copy_seconds(double bytes) const;
  // FLOP/s to compare with: the measured rate, or where there is none the specified one.
  double arithmetic_rate(const Device& device, DType dtype) const;
  // Specified dense FLOP/s of the widest unit for `dtype`; NaN for an unknown GPU.
  double specified_arithmetic_rate(const Device& device, DType dtype) const;

  // Name, measured and specified value of each, as text, for the context of a result file and for people.
  struct Line {
    std::string name;  // "copy_gbps"
    double measured = kVoid, specified = kVoid;
  };
  std::vector<Line> lines(const Device& device) const;
};

// Runs the probes on a CUDA device (two seconds); all NaN for a CPU.
Ceilings measure_ceilings(const Device& device);

}  // namespace kiln
