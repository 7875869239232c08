// pool2d: max_pool2d and global_max_pool (with the position of the maximum saved for the backward pass),
// avg_pool2d and global_avg_pool. NHWC.
//
//   max fwd  y[n,p,q,c] = max_{r,s in window, inside the image} x[n, p*sh+r-ph, q*sw+s-pw, c]
//            NaN wins (the last of several); else the first maximum in (r,s) order is the position; output
//            size is floor mode (PyTorch).
//   max bwd  dx[n,h,w,c] = sum over the windows whose saved position is (h,w) of dy[n,p,q,c]
//   avg fwd  y[n,p,q,c] = (1 / (R*S)) * sum_{r,s in window, inside the image} x[n, p*sh+r-ph, q*sw+s-pw, c]
//            (PyTorch's count_include_pad: padding counts as zeros); output size is floor mode
//   avg bwd  dx[n,h,w,c] = (1 / (R*S)) * sum over the windows that hold (h,w) of dy[n,p,q,c]
//   gmp fwd  y[n,c] = max_{h,w} x[n,h,w,c], arg[n,c] = its h*W+w: the first maximum; NaN wins (the last of
//            several)
//   gmp bwd  dx[n,h,w,c] = arg[n,c] == h*W+w ? dy[n,c] : 0
//   gap fwd  y[n,c] = mean_{h,w} x[n,h,w,c]
//   gap bwd  dx[n,h,w,c] = dy[n,c] / (H*W)
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

// How max_pool2d saves the position of the maximum. kArg8: one byte an output, r*S+s within the window.
// kArg2, for 2x2 windows: two bits an output, r*2+s; channel c is in bits 2*(c%4) of byte c/4 of its pixel,
// and bits of channels beyond C are 0.
enum class PoolArg { kNone, kArg8, kArg2 };

struct MaxPool2dProblem {
  int n = 1, h = 1, w = 1, c = 1;
  int r = 2, s = 2;  // window height, width
  int stride_h = 2, stride_w = 2;
  int pad_h = 0, pad_w = 0;
  PoolArg arg = PoolArg::kNone;  // kNone: forward for inference; the backward pass needs an encoding
  DType dtype = DType::kF32;

  int p() const { return (h + 2 * pad_h - r) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - s) / stride_w + 1; }
  // Bytes that hold the positions of one output pixel.
  int arg_bytes_per_pixel() const {
    return arg == PoolArg::kNone ? 0 : arg == PoolArg::kArg8 ? c : c / 4 + (c % 4 != 0);
  }
  // "n512_h32_w32_c64_r2_st2_p0[_arg8|_arg2]"; w defaults to h, st to r, p to 0.
  std::string str() const;
  static MaxPool2dProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct MaxPool2dFwd {
  static constexpr const char* kOp = "max_pool2d";
  static constexpr const char* kPass = "fwd";
  using Problem = MaxPool2dProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,P,Q,C] dtype
    void* arg;      // uint8: [N,P,Q,C] for kArg8, [N,P,Q,ceil(C/4)] for kArg2; null for kNone
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.p() * p.q() * p.c * (p.r * p.s - 1); }
  static double compulsory_bytes(const Problem& p);  // pixels that no window covers (floor mode) are not read
  static Table<MaxPool2dFwd> impls(DeviceKind);
};

struct MaxPool2dBwd {
  static constexpr const char* kOp = "max_pool2d";
  static constexpr const char* kPass = "bwd";
  using Problem = MaxPool2dProblem;
  struct Args {
    const void* dy;   // [N,P,Q,C] dtype
    const void* arg;  // uint8: [N,P,Q,C] for kArg8, [N,P,Q,ceil(C/4)] for kArg2
    void* dx;         // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);  // throws Error for kNone
  static double flops(const Problem& p) { return 1.0 * p.n * p.p() * p.q() * p.c; }
  static Table<MaxPool2dBwd> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // arg: from the forward pass of a random x
};

struct AvgPool2dProblem {
  int n = 1, h = 1, w = 1, c = 1;
  int r = 2, s = 2;  // window height, width
  int stride_h = 2, stride_w = 2;
  int pad_h = 0, pad_w = 0;
  DType dtype = DType::kF32;

  int p() const { return (h + 2 * pad_h - r) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - s) / stride_w + 1; }
  // "n512_h32_w32_c64_r2_st2_p0"; w defaults to h, st to r, p to 0.
  std::string str() const;
  static AvgPool2dProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct AvgPool2dFwd {
  static constexpr const char* kOp = "avg_pool2d";
  static constexpr const char* kPass = "fwd";
  using Problem = AvgPool2dProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,P,Q,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.p() * p.q() * p.c * p.r * p.s; }
  static double compulsory_bytes(const Problem& p);  // pixels that no window covers (floor mode) are not read
  static Table<AvgPool2dFwd> impls(DeviceKind);
};

struct AvgPool2dBwd {
  static constexpr const char* kOp = "avg_pool2d";
  static constexpr const char* kPass = "bwd";
  using Problem = AvgPool2dProblem;
  struct Args {
    const void* dy;  // [N,P,Q,C] dtype
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.p() * p.q() * p.c * p.r * p.s; }
  static Table<AvgPool2dBwd> impls(DeviceKind);
};

struct GlobalMaxPoolProblem {
  int n = 1, h = 1, w = 1, c = 1;
  bool arg = false;  // "_arg32": the position is saved (int32); the backward pass needs it
  DType dtype = DType::kF32;
  // "n512_h4_w4_c512[_arg32]"; w defaults to h.
  std::string str() const;
  static GlobalMaxPoolProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct GlobalMaxPoolFwd {
  static constexpr const char* kOp = "global_max_pool";
  static constexpr const char* kPass = "fwd";
  using Problem = GlobalMaxPoolProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,C] dtype
    void* arg;      // [N,C] int32, null without arg
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.h * p.w * p.c; }
  static Table<GlobalMaxPoolFwd> impls(DeviceKind);
};

struct GlobalMaxPoolBwd {
  static constexpr const char* kOp = "global_max_pool";
  static constexpr const char* kPass = "bwd";
  using Problem = GlobalMaxPoolProblem;
  struct Args {
    const void* dy;   // [N,C] dtype
    const void* arg;  // [N,C] int32
    void* dx;         // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);  // throws Error without arg
  static double flops(const Problem& p) { return 1.0 * p.n * p.h * p.w * p.c; }
  static Table<GlobalMaxPoolBwd> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // arg: from the forward pass of a random x
};

struct GlobalAvgPoolProblem {
  int n = 1, h = 1, w = 1, c = 1;
  DType dtype = DType::kF32;
  // "n512_h4_w4_c512"; w defaults to h.
  std::string str() const;
  static GlobalAvgPoolProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct GlobalAvgPoolFwd {
  static constexpr const char* kOp = "global_avg_pool";
  static constexpr const char* kPass = "fwd";
  using Problem = GlobalAvgPoolProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.h * p.w * p.c; }
  static Table<GlobalAvgPoolFwd> impls(DeviceKind);
};

struct GlobalAvgPoolBwd {
  static constexpr const char* kOp = "global_avg_pool";
  static constexpr const char* kPass = "bwd";
  using Problem = GlobalAvgPoolProblem;
  struct Args {
    const void* dy;  // [N,C] dtype
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.n * p.c; }
  static Table<GlobalAvgPoolBwd> impls(DeviceKind);
};

}  // namespace kiln
