// The epilogue of kernels whose results leave through staging tiles that the copy engine stores. Their
// residual comes into the same tiles by the copy engine, as the old values of += do.
#pragma once

#include "kernels/common/tma.cuh"
#include "kernels/conv2d/conv2d_epilogue.cuh"

namespace kiln {

// A kernel parameter: nothing in the plain kernel.
template <bool kFused>
struct StagedEpilogue {
  // What is rounded for two sums: `addend` is their old values or the bias.
  __device__ __forceinline__ float2 finish(float first, float second, float2 addend, int, int) const {
    return make_float2(first + addend.x, second + addend.y);
  }
};

template <>
struct StagedEpilogue<true> {
  CUtensorMap residual;  // of a tensor that is seen as y is
  Conv2dEpilogue of;

  // Of the channels `column` and the next, if they are below `columns`; `addend`: the residual's.
  __device__ __forceinline__ float2 finish(float first, float second, float2 addend, int column,
                                           int columns) const {
    const int real = column < columns ? column : 0;
    const float2 scale = of.scale_pair(real), bias = of.bias_pair(real);
    return make_float2(of.finish(first, scale.x, bias.x, addend.x),
                       of.finish(second, scale.y, bias.y, addend.y));
  }
};

}  // namespace kiln
