// Windows that slide over a map: convolution filters, pooling windows.
#pragma once

#include <algorithm>

namespace kiln {

// How many of `size` positions lie in at least one of `outputs` windows, `stride` apart, the first of which
// begins at -pad.
inline double covered_positions(int outputs, int window, int stride, int pad, int size) {
  int count = 0;
  for (int i = 0; i < size; ++i) {
    const int last = std::min((i + pad) / stride, outputs - 1);  // the last that begins at or before i
    count += last * stride - pad + window > i;
  }
  return count;
}

// The same in two dimensions.
template <class Problem>
double covered_pixels(const Problem& p) {
  return covered_positions(p.p(), p.r, p.stride_h, p.pad_h, p.h) *
         covered_positions(p.q(), p.s, p.stride_w, p.pad_w, p.w);
}

}  // namespace kiln
