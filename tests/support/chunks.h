// Sums over large tensors by all threads, the same whatever their number.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/staging.h"

namespace kiln {

// Calls body(begin, end) over chunks of [0, count) in parallel and merges the results in order.
template <class Part, class Body>
Part in_chunks(int64_t count, const Body& body) {
  constexpr int64_t kChunk = 1 << 18;
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<Part> parts(static_cast<size_t>(chunks));
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t i = 0; i < chunks; ++i) parts[i] = body(i * kChunk, std::min(count, (i + 1) * kChunk));
  Part sum{};
  for (const Part& part : parts) sum.merge(part);
  return sum;
}

struct Sum {
  double value = 0;
  void merge(const Sum& next) { value += next.value; }
};

// Root mean square of the first `count` elements.
inline double rms_of(const TensorView& tensor, int64_t count) {
  const Sum squares = in_chunks<Sum>(count, [&](int64_t begin, int64_t end) {
    Sum sum;
    for (int64_t i = begin; i < end; ++i) sum.value += tensor.value(i) * tensor.value(i);
    return sum;
  });
  return std::sqrt(squares.value / static_cast<double>(count));
}

}  // namespace kiln
