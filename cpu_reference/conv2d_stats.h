// Mean and biased variance of each channel of y, for the statistics of conv2d fwd: sums about the first
// pixel's values in double, over ranges of pixels that are then merged in their order.
#pragma once

#include "cpu_reference/cpu_support.h"

namespace kiln {
namespace {

// Of one range: its first pixel's values, the sums of the distances from them and of their squares.
constexpr int kStatisticRows = 3;  // of K doubles

KILN_CPU_CLONES void add_statistics(const float* y,  // [pixels,K]
                                    long long pixels, int K, bool first,
                                    double* range) {  // [kStatisticRows,K]
  double* const sum = range + K;
  double* const square = sum + K;
  if (first) {
    for (int k = 0; k < K; ++k) range[k] = y[k], sum[k] = square[k] = 0;
  }
  for (long long i = 0; i < pixels; ++i, y += K) {
    for (int k = 0; k < K; ++k) {
      const double d = y[k] - range[k];
      sum[k] += d;
      square[k] += d * d;
    }
  }
}

// `count(i)`: pixels of range i.
template <class Count>
void merge_statistics(const double* ranges,  // [parts,kStatisticRows,K]
                      int parts, int K, const Count& count,
                      float* mean,   // [K]
                      float* var) {  // [K]
  for (int k = 0; k < K; ++k) {
    double pixels = 0, middle = 0, m2 = 0;
    for (int i = 0; i < parts; ++i) {
      const double* range = ranges + (static_cast<size_t>(i) * kStatisticRows) * K + k;
      const double n = static_cast<double>(count(i)), distance = range[K] / n;
      const double apart = range[0] + distance - middle;
      m2 += range[2 * K] - distance * range[K] + apart * apart * (pixels * n / (pixels + n));
      pixels += n;
      middle += apart * (n / pixels);
    }
    mean[k] = static_cast<float>(middle);
    var[k] = static_cast<float>(std::max(m2, 0.0) / pixels);
  }
}

}  // namespace
}  // namespace kiln
