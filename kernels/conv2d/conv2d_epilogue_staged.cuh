// The epilogue of kernels whose results leave through staging tiles that the copy engine stores. Their
// residual comes into the same tiles by the copy engine, as the old values of += do, and as x where dgrad
// goes back through an activation.
#pragma once

#include "kernels/common/tma.cuh"
#include "kernels/conv2d/conv2d_column_sums.cuh"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

// A kernel parameter. Of the plain kernel: dgrad's gate, and where the sums of columns go.
template <bool kFused>
struct StagedEpilogue {
  CUtensorMap x;  // of dgrad's x where it is gated
  bool gated;
  Conv2dGate gate;
  ColumnPartials partials = {};  // with kCounts

  // What is rounded for two sums: `addend` is their old values, the bias, or with a gate x.
  template <bool kDgrad>
  __device__ __forceinline__ float2 finish(float first, float second, float2 addend, int, int) const {
    if (kDgrad && gated) {
      return make_float2(gate.passes(addend.x) ? first : 0.0f, gate.passes(addend.y) ? second : 0.0f);
    }
    return make_float2(first + addend.x, second + addend.y);
  }
};

template <>
struct StagedEpilogue<true> {
  CUtensorMap residual;  // of a tensor that is seen as y is
  Conv2dEpilogue of;

  // Of the channels `column` and the next, if they are below `columns`; `addend`: the residual's.
  template <bool kDgrad>
  __device__ __forceinline__ float2 finish(float first, float second, float2 addend, int column,
                                           int columns) const {
    const int real = column < columns ? column : 0;
    const float2 scale = of.scale_pair(real), bias = of.bias_pair(real);
    return make_float2(of.finish(first, scale.x, bias.x, addend.x),
                       of.finish(second, scale.y, bias.y, addend.y));
  }
};

}  // namespace kiln
