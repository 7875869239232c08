// Time of bound passes: on CUDA device time between events around replays of a graph, on the CPU wall time.
// What is to be compared is timed in turns, so that a drift of the clocks falls on all of it alike.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/common/impl.h"

namespace kiln {

struct Timing {
  double seconds = 0;     // of one launch: median over the samples
  double spread_pct = 0;  // half the interquartile range over the median
  // Half the width of the median's 95 % interval over the median: 1.57 * IQR / sqrt(samples) (McGill, Tukey
  // and Larsen 1978, the notch of a box plot).
  double median_spread_pct = 0;
  int samples = 0;
};

Timing summarize(std::vector<double> samples);

struct TimingOptions {
  double sample_seconds = 0.001;  // a sample takes at least this long, and launches everything at least once
  int fewest = 15, most = 200;    // samples
  double target_pct = 0.5;        // enough samples once median_spread_pct is below
  double most_seconds = 0.05;     // of one contestant, whatever its spread; three samples at least
  double race = 3;                // a contestant this many times slower than the fastest ...
  int behind = 7;                 // ... gets so many samples
  double warm_up_seconds = 0;     // rounds whose samples do not count: clocks and caches settle
  double rest = 0;                // after a sample nothing runs for this many times as long
};

// Launches in a fixed order, as one sample after another. Different buffers in `bounds` give a cold time, the
// same ones a warm time. The launches must have run once before.
class LaunchSampler {
 public:
  LaunchSampler(std::span<const Bound> bounds, DeviceKind kind, Stream stream, double sample_seconds);
  ~LaunchSampler();
  LaunchSampler(LaunchSampler&&) noexcept;
  double sample();             // seconds of one launch, averaged over sample_seconds or everything once
  double sample_cost() const;  // seconds that a sample is expected to take

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Samples of every contestant in turns until each has enough; `after_round` is called between the rounds.
std::vector<Timing> time_in_turns(std::span<LaunchSampler> contestants, const TimingOptions& options,
                                  const std::function<void()>& after_round = {});

// One contestant alone.
Timing time_launches(std::span<const Bound> bounds, DeviceKind kind, Stream stream,
                     const TimingOptions& options = {});

}  // namespace kiln
