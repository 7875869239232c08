// What the kernels with a sliding window (max_pool2d, avg_pool2d) know of a problem: plain numbers that
// device code can read.
//
// A cell (u, v) is the stride_h x stride_w patch of the input whose rows u*stride_h - pad_h + i, i <
// stride_h, and columns begin where window (u, v) begins. Cells tile the input, so a backward thread that
// owns a cell owns its dx. Row i of cell u lies in window p = u - k, as that window's row i + k*stride_h, for
// each k where that is below r: no division, and one step (k = 0) where windows do not overlap.
#pragma once

#include "kernels/pool2d/pool2d.h"

namespace kiln {

struct PoolShape {
  int h, w, c;
  int p, q;
  int r, s;
  int stride_h, stride_w;
  int pad_h, pad_w;
  int elements;  // of y
};

template <class Problem>
PoolShape make_pool_shape(const Problem& o) {
  return {.h = o.h,
          .w = o.w,
          .c = o.c,
          .p = o.p(),
          .q = o.q(),
          .r = o.r,
          .s = o.s,
          .stride_h = o.stride_h,
          .stride_w = o.stride_w,
          .pad_h = o.pad_h,
          .pad_w = o.pad_w,
          .elements = o.n * o.p() * o.q() * o.c};
}

// The cells along one side that hold input: u = first ... first + count - 1, count at most the side's length.
struct PoolCells {
  int first, count;
};

inline PoolCells pool_cells(int length, int stride, int pad) {
  return {pad / stride, (length + pad + stride - 1) / stride - pad / stride};
}

}  // namespace kiln
