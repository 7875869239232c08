// What conv2d kernels know of a problem, as a kernel parameter.
#pragma once

#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

struct Conv2dShape {
  int n, h, w, c;  // images, input height, width, channels
  int k, r, s;     // output channels, filter height and width
  int p, q;        // output height and width
  int stride_h, stride_w, pad_h, pad_w;
  int c_stride;     // channels from one pixel of x and dx to the next
  bool accumulate;  // dgrad: dx +=
  Conv2dGate gate;  // dgrad: what stays where x is given

  explicit Conv2dShape(const Conv2dProblem& a)
      : n(a.n),
        h(a.h),
        w(a.w),
        c(a.c),
        k(a.k),
        r(a.r),
        s(a.s),
        p(a.p()),
        q(a.q()),
        stride_h(a.stride_h),
        stride_w(a.stride_w),
        pad_h(a.pad_h),
        pad_w(a.pad_w),
        c_stride(a.x_channels()),
        accumulate(a.accumulate),
        gate(conv2d_gate(a.dact)) {}
};

// What the portable kernels take: tf32 is the tensor cores' alone.
inline Support conv2d_supports_fp32_bf16(const Conv2dProblem& p, const Device&) {
  return Support::require(p.dtype == DType::kF32 || p.dtype == DType::kBF16, "dtype must be fp32 or bf16");
}

}  // namespace kiln
