// Time of a bound pass: on CUDA device time between events around replays of a graph, on the CPU wall time.
#pragma once

#include <span>
#include <vector>

#include "kernels/common/impl.h"

namespace kiln {

struct Timing {
  double seconds = 0;     // of one launch: median over the repetitions
  double spread_pct = 0;  // half the interquartile range over the median
};

Timing summarize(std::vector<double> samples);

// Launches every element of `bounds` in turn, again and again: one repetition takes about `seconds_each`, 7
// are made (3 where a launch takes over 50 ms). Different buffers in `bounds` give a cold time, the same ones
// a warm time. The launches must have run once before.
Timing time_launches(std::span<const Bound> bounds, DeviceKind kind, Stream stream, double seconds_each);

}  // namespace kiln
