// depthwise_conv2d: 2-D convolution with one filter a channel (PyTorch's conv2d with groups = channels), NHWC
// activations, RSC filters.
//
//   fwd    y[n,p,q,c]  = bias[c] + sum_{r,s} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[r,s,c]
//   dgrad  dx[n,h,w,c] = sum_{r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,c] * w[r,s,c]
//   wgrad  dw[r,s,c]   = sum_{n,p,q} dy[n,p,q,c] * x[n, p*sh+r-ph, q*sw+s-pw, c],  dbias[c] = sum dy[n,p,q,c]
//
// Taps that fall on the padding count as zeros. Accumulation is fp32 at least.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct DepthwiseConv2dProblem {
  int n = 1, h = 1, w = 1, c = 1;  // images, height, width, channels
  int r = 3, s = 3;                // filter height and width
  int stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0;
  bool bias = false;  // fwd adds bias[c]; wgrad also writes dbias[c]
  DType dtype = DType::kF32;

  int p() const { return (h + 2 * pad_h - r) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - s) / stride_w + 1; }
  double macs() const { return 1.0 * n * p() * q() * c * r * s; }
  // The same problem without bias: whose tuned choices may serve this one.
  std::vector<DepthwiseConv2dProblem> plainer() const;

  // "n512_h32_w32_c96_r3[_st2][_p0][_bias]"; w defaults to h, st to 1, p to r/2.
  std::string str() const;
  static DepthwiseConv2dProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct DepthwiseConv2dFwd {
  static constexpr const char* kOp = "depthwise_conv2d";
  static constexpr const char* kPass = "fwd";
  using Problem = DepthwiseConv2dProblem;
  struct Args {
    const void* x;     // [N,H,W,C] dtype
    const void* w;     // [R,S,C] dtype
    const void* bias;  // [C] fp32, null without bias
    void* y;           // [N,P,Q,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<DepthwiseConv2dFwd> impls(DeviceKind);
};

struct DepthwiseConv2dDgrad {
  static constexpr const char* kOp = "depthwise_conv2d";
  static constexpr const char* kPass = "dgrad";
  using Problem = DepthwiseConv2dProblem;
  struct Args {
    const void* dy;  // [N,P,Q,C] dtype
    const void* w;   // [R,S,C] dtype
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<DepthwiseConv2dDgrad> impls(DeviceKind);
};

struct DepthwiseConv2dWgrad {
  static constexpr const char* kOp = "depthwise_conv2d";
  static constexpr const char* kPass = "wgrad";
  using Problem = DepthwiseConv2dProblem;
  struct Args {
    const void* dy;  // [N,P,Q,C] dtype
    const void* x;   // [N,H,W,C] dtype
    void* dw;        // [R,S,C] fp32, whatever the dtype
    void* dbias;     // [C] fp32, null without bias
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<DepthwiseConv2dWgrad> impls(DeviceKind);
};

}  // namespace kiln
