// conv2d: 2-D convolution (cross-correlation, as PyTorch's conv2d), NHWC activations, KRSC filters.
//
//   fwd    y[n,p,q,k]  = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], with an epilogue
//          y[n,p,q,k]  = act(scale[k] * sum + bias[k] + residual[n,p,q,k]), rounded once
//          with max2: of that the maxima of 2x2 windows, as max_pool2d with stride 2 gives them
//          with stats: also mean[k] and var[k] (biased) of y[:,:,:,k] as rounded; then there is at most a
//          bias
//   dgrad  dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c]
//          with drelu, drelu6: 0 where x, which is then an output of that activation, has no slope
//   wgrad  dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c],  dbias[k] = sum dy[n,p,q,k]
//
// Taps that fall on the padding count as zeros. Accumulation is fp32 at least. dgrad and wgrad refuse
// problems with an epilogue (bias is none: wgrad has dbias).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/act_kind.h"
#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct Conv2dProblem {
  int n = 1, h = 1, w = 1, c = 1;  // input images, height, width, channels
  int k = 1, r = 1, s = 1;         // output channels, filter height and width
  int stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0;
  int c_stride = 0;    // channels from one pixel of x (and dx) to the next; 0: c. Channels beyond c: ignored
                       // in x, written as zero in dx
  bool bias = false;   // fwd adds bias[k]; wgrad also writes dbias[k]
  bool scale = false;  // "_scale": fwd multiplies the sum by scale[k] (a batchnorm's, with its shift as bias)
  bool residual = false;         // "_res": fwd adds a tensor of y's shape before the activation
  ActKind act = ActKind::kNone;  // of fwd; formulas as in activation.h
  bool accumulate = false;       // "_acc": dgrad does dx += (c_stride must be c)
  bool pool = false;  // "_max2": y is [N,P/2,Q/2,K], the maxima over 2x2 windows of what it would be without;
                      // an odd last row or column is dropped
  bool pool_arg = false;  // "_arg2": fwd also saves their positions (PoolArg::kArg2 of pool2d.h)
  bool stats = false;     // "_stats": fwd also gives mean and variance of each channel of y as it is stored
  ActKind dact = ActKind::kNone;  // "_drelu", "_drelu6": the activation that dgrad goes back through
  DType dtype = DType::kF32;

  int p() const { return (h + 2 * pad_h - r) / stride_h + 1; }  // the one output-size formula
  int q() const { return (w + 2 * pad_w - s) / stride_w + 1; }
  int x_channels() const { return c_stride ? c_stride : c; }
  int y_h() const { return pool ? p() / 2 : p(); }
  int y_w() const { return pool ? q() / 2 : q(); }
  bool has_epilogue() const { return scale || residual || act != ActKind::kNone || pool || stats; }
  double macs() const { return 1.0 * n * p() * q() * k * r * s * c; }
  // The same problem without its epilogue, then without bias too: whose tuned choices may serve this one.
  std::vector<Conv2dProblem> plainer() const;

  // "n512_h32_w32_c64_k64_r3_st1_p1[_cs8][_scale][_bias][_res][_relu|_relu6|_gelu|_silu][_max2[_arg2]]
  // [_stats][_acc][_drelu|_drelu6]"; w defaults to h, st to 1, p to r/2 (given as "p0").
  std::string str() const;
  static Conv2dProblem parse(std::string_view text, DType dtype);  // validates
  void validate() const;                                           // throws Error naming the broken rule
};

struct Conv2dFwd {
  static constexpr const char* kOp = "conv2d";
  static constexpr const char* kPass = "fwd";
  using Problem = Conv2dProblem;
  struct Args {
    const void* x;         // [N,H,W,c_stride] dtype
    const void* w;         // [K,R,S,C] dtype
    const void* scale;     // [K] fp32, null without scale
    const void* bias;      // [K] fp32, null without bias
    const void* residual;  // [N,P,Q,K] dtype, null without residual
    void* y;               // [N,P,Q,K] dtype, with max2 [N,P/2,Q/2,K]
    void* arg;             // [N,P/2,Q/2,ceil(K/4)] uint8, null without arg2
    void* mean;            // [K] fp32, over N,P,Q; null without stats
    void* var;             // [K] fp32, biased (divided by N*P*Q); null without stats
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static double compulsory_bytes(const Problem& p);  // pixels of x that no filter covers are not read
  static Table<Conv2dFwd> impls(DeviceKind);
};

struct Conv2dDgrad {
  static constexpr const char* kOp = "conv2d";
  static constexpr const char* kPass = "dgrad";
  using Problem = Conv2dProblem;
  struct Args {
    const void* dy;  // [N,P,Q,K] dtype
    const void* w;   // [K,R,S,C] dtype
    const void* x;   // [N,H,W,c_stride] dtype, null without drelu and drelu6
    void* dx;        // [N,H,W,c_stride] dtype; += with accumulate
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<Conv2dDgrad> impls(DeviceKind);
};

struct Conv2dWgrad {
  static constexpr const char* kOp = "conv2d";
  static constexpr const char* kPass = "wgrad";
  using Problem = Conv2dProblem;
  struct Args {
    const void* dy;  // [N,P,Q,K] dtype
    const void* x;   // [N,H,W,c_stride] dtype
    void* dw;        // [K,R,S,C] fp32, whatever the dtype
    void* dbias;     // [K] fp32, null without bias
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static double compulsory_bytes(const Problem& p);  // pixels of x that no filter covers are not read
  static Table<Conv2dWgrad> impls(DeviceKind);
};

}  // namespace kiln
