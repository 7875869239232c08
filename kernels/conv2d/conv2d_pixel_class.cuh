// dgrad's pixels by the remainders of (h+ph, w+pw) by the strides: all pixels of a class (a,b) meet the same
// taps r = a + sh*i, s = b + sw*j, at p = (h+ph-a)/sh - i, so that each class is an unstrided gather.
#pragma once

#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {

// One remainder a of (h + pad) by the stride, along one axis.
struct AxisClass {
  int remainder;      // taps remainder, remainder + stride, ...
  int first, extent;  // pixels first, first + stride, ...
  int taps;
  __device__ AxisClass(int a, int stride, int pad, int length, int filter) : remainder(a) {
    first = ((a - pad) % stride + stride) % stride;
    extent = first < length ? (length - first - 1) / stride + 1 : 0;
    taps = a < filter ? (filter - a - 1) / stride + 1 : 0;
  }
};

struct PixelClass {
  AxisClass rows, cols;
  __device__ PixelClass(const Conv2dShape& p, int index)
      : rows(index / p.stride_w, p.stride_h, p.pad_h, p.h, p.r),
        cols(index % p.stride_w, p.stride_w, p.pad_w, p.w, p.s) {}
  __device__ unsigned pixels(int images) const {
    return static_cast<unsigned>(images) * rows.extent * cols.extent;
  }
  // Pixel m of the class: image n, pixel (h, w) of dx.
  __device__ void locate(const Conv2dShape& p, unsigned m, int& n, int& h, int& w) const {
    const int row = m / cols.extent;
    w = cols.first + m % cols.extent * p.stride_w;
    h = rows.first + row % rows.extent * p.stride_h;
    n = row / rows.extent;
  }
};

}  // namespace kiln
