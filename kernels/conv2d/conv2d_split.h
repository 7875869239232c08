// Long reductions cut into ranges for the blocks of the GPU: how long a range may be and how many pay.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/common/grid.h"

namespace kiln {

struct Split {
  int count = 0;   // ranges; the last may be shorter, none is empty
  int length = 0;  // elements of a range
};

// The longest range that tensor cores should sum in one go: they truncate as they add, an error that grows
// with the length of the chain times the size of the sum, against bounds that grow with `terms`, the whole
// sum's.
inline int longest_chain(int terms, int shortest) {
  return static_cast<int>(shortest * std::max(1.0, std::sqrt(terms / 8192.0)));
}

// Cuts `total` elements into ranges of a multiple of `step`, where each of `tiles` blocks a range needs a
// place among `places` on the GPU: the count from `least` on that finishes first, counting whole waves and,
// for each wave, the cost of writing and adding its sums (as much as `sum_steps` steps). The workspace holds
// at most 128 MiB of sums of `out` floats.
inline Split choose_split(int total, int step, long long tiles, long long places, long long out,
                          long long least = 1, int sum_steps = 4) {
  const long long most = std::clamp<long long>((32LL << 20) / out, 1, 65535);
  const long long limit = std::min(most, std::max(1LL, ceil_div<long long>(total, 8LL * step)));
  least = std::min(least, limit);
  Split best;
  double best_cost = 0;
  for (long long count = least; count <= limit && tiles * (count - least) < 4 * places; ++count) {
    const int length = static_cast<int>(ceil_div<long long>(ceil_div<long long>(total, count), step) * step);
    const double waves = static_cast<double>(ceil_div(tiles * count, places));
    const double cost = waves * (length + 1.0 * sum_steps * step);
    if (best.count == 0 || cost < best_cost) {
      best = {static_cast<int>(ceil_div<long long>(total, length)), length};
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace kiln
