// The epilogue of conv2d fwd inside kernels, in fp32 before the one rounding to y's type:
//
//   y[n,p,q,k] = act(scale[k] * sum + bias[k] + residual[n,p,q,k])
//
// Kernels are compiled twice: plain, which adds a bias at most, and fused, where each part is there or not at
// run time. Of the activations those that are a clamp: unrolled over a tile's accumulators, gelu and silu
// would be more code than the rest of a kernel. What an absent part leaves alone is multiplied by 1 or has 0
// added. The residual has y's shape and type and is read where y is written.
#pragma once

#include "kernels/activation/activation_kind.h"
#include "kernels/common/mma.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_stats.cuh"

namespace kiln {

struct Conv2dEpilogue {
  const float* scale;    // [K] or null
  const float* bias;     // [K] or null
  const void* residual;  // [N,P,Q,K] of y's type, or null
  ActClamp clamp;
  Conv2dStats stats = {};

  __device__ __forceinline__ float finish(float sum, float factor, float shift, float joined) const {
    return clamp(sum * factor + shift + joined);
  }
  // Of two neighbouring channels below K; k is even and the vectors are 16-byte aligned.
  __device__ __forceinline__ float2 scale_pair(int k) const {
    return scale ? *reinterpret_cast<const float2*>(scale + k) : make_float2(1.0f, 1.0f);
  }
  __device__ __forceinline__ float2 bias_pair(int k) const {
    return bias ? *reinterpret_cast<const float2*>(bias + k) : make_float2(0.0f, 0.0f);
  }
};

inline Conv2dEpilogue conv2d_epilogue(const Conv2dProblem& p, const Conv2dFwd::Args& a) {
  return {.scale = p.scale ? static_cast<const float*>(a.scale) : nullptr,
          .bias = p.bias ? static_cast<const float*>(a.bias) : nullptr,
          .residual = p.residual ? a.residual : nullptr,
          .clamp = act_clamp(p.act)};
}

inline Support conv2d_epilogue_supports(const Conv2dProblem& p) {
  if (p.pool) return Support::no("it takes no max2");
  if (p.stats) return Support::no("it takes no stats");
  return Support::require(!is_smooth(p.act), "of the activations it takes relu and relu6");
}

// For implementations without an epilogue.
inline Support conv2d_takes_no_epilogue(const Conv2dProblem& p) {
  return Support::require(!p.has_epilogue(), "it takes no scale, res, activation, max2 or stats");
}

// For implementations of dgrad that do not go back through an activation.
inline Support conv2d_takes_no_gate(const Conv2dProblem& p) {
  return Support::require(p.dact == ActKind::kNone, "it takes no drelu or drelu6");
}

// Turns the sums of elements `at` to `at` + 3 of y, channels from k on, into what is stored. Those below K
// are read.
template <class T>
__device__ __forceinline__ void finish_four(float (&v)[4], const Conv2dEpilogue& e, size_t at, int k, int K) {
  float joined[4] = {};
  if (e.residual) {
    const T* from = static_cast<const T*>(e.residual) + at;
    if (K % 4 == 0 && K - k >= 4) {
      const Vec<T, 4> four = Vec<T, 4>::load(from);
#pragma unroll
      for (int j = 0; j < 4; ++j) joined[j] = four[j];
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (k + j < K) joined[j] = to_float(from[j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float scale = e.scale && k + j < K ? __ldg(e.scale + k + j) : 1.0f;
    const float bias = e.bias && k + j < K ? __ldg(e.bias + k + j) : 0.0f;
    v[j] = e.finish(v[j], scale, bias, joined[j]);
  }
}

}  // namespace kiln
