// Running moments of V channels: (count, mean, M2 = sum of squares about the mean), merged by the formula of
// Chan, Golub and LeVeque. Kernels keep them of x - pivot, so that a mean far larger than the deviation costs
// no digits.
#pragma once

#include "kernels/common/vec.cuh"

namespace kiln {

template <int V>
struct Moments {
  float count;
  float mean[V], m2[V];

  __device__ __forceinline__ void clear() {
    count = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) mean[v] = m2[v] = 0.0f;
  }
  // Factors of merging `more` values in: the new mean moves by delta * fraction, M2 grows by delta^2 *
  // weight.
  __device__ __forceinline__ void grow(float more, float& fraction, float& weight) {
    const float total = count + more;
    fraction = more / total;
    weight = count * fraction;
    count = total;
  }
  __device__ __forceinline__ void merge(int v, float fraction, float weight, float mean_b, float m2_b) {
    const float delta = mean_b - mean[v];
    mean[v] += delta * fraction;
    m2[v] += m2_b + delta * weight * delta;
  }
  // Merges kRows rows, of which `left` count unless kFull; their squares are summed about their own mean. The
  // sum of a few bf16 values needs no pivot: they have 8 digits of its 24.
  template <int kRows, bool kFull, class T>
  __device__ __forceinline__ void add_rows(const Vec<T, V>* rows, int left, const float (&pivot)[V]) {
    constexpr bool kLate = sizeof(T) == 2;
    const float rows_f = kFull ? static_cast<float>(kRows) : static_cast<float>(left);
    const float inverse = 1.0f / rows_f;
    float fraction, weight;
    grow(rows_f, fraction, weight);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float early = kLate ? 0.0f : pivot[v];
      float sum = 0.0f, squares = 0.0f;
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        if (kFull || u < left) sum += rows[u][v] - early;
      }
      const float mean_b = sum * inverse;
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const float d = (rows[u][v] - early) - mean_b;
        if (kFull || u < left) squares += d * d;
      }
      merge(v, fraction, weight, kLate ? mean_b - pivot[v] : mean_b, squares);
    }
  }
};

}  // namespace kiln
