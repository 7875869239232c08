// What the fast batchnorm forwards do with rows of x: y = act((x - mean) * scale + beta + residual), and the
// mask of act.
#pragma once

#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"

namespace kiln {
namespace {

// What is behind the normalisation. The residual's rows are in flight beside x's.
struct Clamped {
  static constexpr bool kResidual = false, kSmooth = false;
  static constexpr int kRows = 4;
};
struct ResidualClamped {
  static constexpr bool kResidual = true, kSmooth = false;
  static constexpr int kRows = 2;
};
struct Smooth {
  static constexpr bool kResidual = false, kSmooth = true;
  static constexpr int kRows = 2;
};

template <class Epilogue, int V>
__device__ __forceinline__ void activate(float (&values)[V], const BatchnormActivation& activation) {
  if constexpr (!Epilogue::kSmooth) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = activation.clamp.activate(values[v]);
  } else if (activation.act == BatchnormAct::kGelu) {  // one branch a row
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = gelu(values[v]);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = silu(values[v]);
  }
}

// Rounds values to a row, clamped. In bf16 two are clamped at once, behind the rounding: it keeps their
// order, and the clamp's ends are bf16 values.
template <int V>
__device__ __forceinline__ void set_clamped(Vec<float, V>& row, const float (&values)[V],
                                            const BatchnormClamp& clamp) {
#pragma unroll
  for (int v = 0; v < V; ++v) row.v[v] = clamp.activate(values[v]);
}
template <int V>
__device__ __forceinline__ void set_clamped(Vec<bf16, V>& row, const float (&values)[V],
                                            const BatchnormClamp& clamp) {
  const __nv_bfloat162 low = __float2bfloat162_rn(clamp.low), high = __float2bfloat162_rn(clamp.high);
  __nv_bfloat162* pairs = reinterpret_cast<__nv_bfloat162*>(row.v);
#pragma unroll
  for (int v = 0; v < V; v += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[v], values[v + 1]);
    pairs[v / 2] = __hmin2_nan(__hmax2_nan(pair, low), high);
  }
}

// Stores this thread's part of a mask byte, bits 0 to V-1 of `bits`, whose first channel is element `at`.
template <int V>
__device__ __forceinline__ void store_bits(unsigned bits, unsigned char* __restrict__ mask, size_t at) {
  static_assert(V == 8 || V == 4, "a byte is one or two threads' work");
  if constexpr (V == 4) {
    // The pair own the same rows, so both are here. Thread indices are even where the byte begins.
    const unsigned pair = 3u << (threadIdx.x % 32 & ~1u);
    bits |= __shfl_xor_sync(pair, bits, 1) << 4;
    if (threadIdx.x % 2) return;
  }
  mask[at / 8] = static_cast<unsigned char>(bits);
}

// Rows at, at + step, ... of one thread's channels, whose x is in `rows`; `left` of them unless kFull. mask
// may be null. kStore is how y is written.
template <class Epilogue, int kRows, bool kFull, Store kStore, class T, int V>
__device__ __forceinline__ void normalise_rows(Vec<T, V>* rows, const T* __restrict__ residual,
                                               T* __restrict__ y, unsigned char* __restrict__ mask, size_t at,
                                               ptrdiff_t step, int left, const Channels<V>& ch,
                                               const BatchnormActivation& activation) {
  Vec<T, V> added[kRows];
  if constexpr (Epilogue::kResidual) load_rows<T, V, kRows, kFull>(residual + at, step, left, added);
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    if (kFull || u < left) {
      float values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = ch.pre(v, batchnorm_centre(rows[u][v], ch.mean[v]));
        if constexpr (Epilogue::kResidual) values[v] = batchnorm_join(values[v], added[u][v]);
      }
      activate<Epilogue>(values, activation);
#pragma unroll
      for (int v = 0; v < V; ++v) rows[u].set(v, values[v]);
      store_row<kStore>(rows[u], y + at + u * step);
      if constexpr (Epilogue::kResidual && V > 1) {
        if (mask) {  // of y as stored: bf16 may round it to the clamp's end
          unsigned bits = 0;
#pragma unroll
          for (int v = 0; v < V; ++v) bits |= activation.clamp.passes(rows[u][v]) ? 1u << v : 0u;
          store_bits<V>(bits, mask, at + u * step);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kiln
