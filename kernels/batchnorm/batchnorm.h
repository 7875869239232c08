// batchnorm: batch normalisation over N, H, W per channel (PyTorch's BatchNorm2d), NHWC, with an optional
// residual and activation behind it.
//
//   statistics   mean[c] = sum x / M,  var[c] = sum (x - mean)^2 / M (biased),  M = N*H*W,
//                rstd = 1/sqrt(var+eps)
//
//   fwd_*        u = gamma[c] * (x - mean[c]) * rstd[c] + beta[c] (+ residual),  y = act(u)
//
//   fwd_given    what fwd_train does where the producer of x has its mean and biased variance already
//
//   fwd_train    running = (1 - momentum) * running + momentum * statistic, with the unbiased variance
//                var * M / (M - 1) (biased where M = 1); saves mean and rstd
//
//   bwd          g = dy * act'(u): u is recomputed from x; behind a residual the mask says where act passed,
//                which is where the stored y > 0 (relu6: 0 < y < 6)
//                dbeta = sum g,  dgamma = sum g * (x - mean) * rstd,
//                dx = gamma * rstd * (g - dbeta/M - (x - mean) * rstd * dgamma/M),  dresidual = g
//
// With `pool`, y is the maximum over windows of 2x2, stride 2, of act(u) as dtype stores it (floor mode: the
// last row or column of an odd map is in none), and training saves its position in arg: the first maximum in
// (r,s) order, of several NaN the last. The backward's dy is of that y; g is dy where a window has its
// maximum, else 0.
//
// Statistics are computed as Welford or a two-pass sum about a mean, never as E[x^2] - E[x]^2.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/act_kind.h"
#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

// The activation behind the normalisation; formulas as in activation.h.
using BatchnormAct = ActKind;

struct BatchnormProblem {
  int n = 1, h = 1, w = 1, c = 1;
  BatchnormAct act = BatchnormAct::kNone;
  bool residual = false;  // a tensor of x's shape is added before the activation (none, relu or relu6)
  bool pool = false;      // maxima over windows of 2x2 behind the activation; without residual, gelu and silu
  float eps = 1e-5f;
  float momentum = 0.1f;  // weight of the new statistic
  DType dtype = DType::kF32;

  long long per_channel() const { return 1LL * n * h * w; }  // M
  // Training saves where the activation passed: behind a residual u cannot be recomputed from x alone.
  bool masked() const { return residual && act != BatchnormAct::kNone; }
  int mask_bytes_per_pixel() const { return (c + 7) / 8; }
  // The size of y.
  int out_h() const { return pool ? h / 2 : h; }
  int out_w() const { return pool ? w / 2 : w; }
  int arg_bytes_per_pixel() const { return (c + 3) / 4; }
  // "n512_h32_w32_c64[_res][_relu|_relu6|_gelu|_silu][_max2][_eps0.001][_mom0.5]"; h and w default to 1, or w
  // to h.
  std::string str() const;
  static BatchnormProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct BatchnormFwdTrain {
  static constexpr const char* kOp = "batchnorm";
  static constexpr const char* kPass = "fwd_train";
  using Problem = BatchnormProblem;
  struct Args {
    const void* x;         // [N,H,W,C] dtype
    const void* gamma;     // [C] fp32
    const void* beta;      // [C] fp32
    const void* residual;  // [N,H,W,C] dtype, null without
    void* running_mean;    // [C] fp32, in and out
    void* running_var;     // [C] fp32, in and out
    void* y;               // [N,H,W,C] dtype; with pool [N,H/2,W/2,C], here and below
    void* saved_mean;      // [C] fp32
    void* saved_rstd;      // [C] fp32
    void* mask;            // [N,H,W,ceil(C/8)] uint8, bit c%8 of byte c/8: act passed; null unless masked()
    void* arg;  // [N,H/2,W/2,ceil(C/4)] uint8, r*2+s in bits 2*(c%4) of byte c/4; null without pool
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 8.0 * p.per_channel() * p.c; }
  static Table<BatchnormFwdTrain> impls(DeviceKind);
  static std::vector<unsigned char> positions(const Problem&, const std::vector<const void*>&);
};

// fwd_train without the statistics: whoever made x made them.
struct BatchnormFwdGiven {
  static constexpr const char* kOp = "batchnorm";
  static constexpr const char* kPass = "fwd_given";
  using Problem = BatchnormProblem;
  struct Args {
    const void* x;         // [N,H,W,C] dtype
    const void* gamma;     // [C] fp32
    const void* beta;      // [C] fp32
    const void* residual;  // [N,H,W,C] dtype, null without
    const void* mean;      // [C] fp32, of x
    const void* var;       // [C] fp32, of x, biased
    void* running_mean;    // [C] fp32, in and out
    void* running_var;     // [C] fp32, in and out
    void* y;               // [N,H,W,C] dtype
    void* saved_rstd;      // [C] fp32
    void* mask;            // [N,H,W,ceil(C/8)] uint8 as fwd_train's, null unless masked()
    void* arg;             // [N,H/2,W/2,ceil(C/4)] uint8 as fwd_train's, null without pool
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 3.0 * p.per_channel() * p.c; }
  static Table<BatchnormFwdGiven> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // mean, var: of x
  static std::vector<unsigned char> positions(const Problem&, const std::vector<const void*>&);
};

// Normalises with statistics that are given.
struct BatchnormFwdApply {
  static constexpr const char* kOp = "batchnorm";
  static constexpr const char* kPass = "fwd_apply";
  using Problem = BatchnormProblem;
  struct Args {
    const void* x;         // [N,H,W,C] dtype
    const void* gamma;     // [C] fp32
    const void* beta;      // [C] fp32
    const void* mean;      // [C] fp32
    const void* rstd;      // [C] fp32
    const void* residual;  // [N,H,W,C] dtype, null without
    void* y;               // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 3.0 * p.per_channel() * p.c; }
  static Table<BatchnormFwdApply> impls(DeviceKind);
};

// Normalises with the running statistics.
struct BatchnormFwdInfer {
  static constexpr const char* kOp = "batchnorm";
  static constexpr const char* kPass = "fwd_infer";
  using Problem = BatchnormProblem;
  struct Args {
    const void* x;             // [N,H,W,C] dtype
    const void* gamma;         // [C] fp32
    const void* beta;          // [C] fp32
    const void* running_mean;  // [C] fp32
    const void* running_var;   // [C] fp32
    const void* residual;      // [N,H,W,C] dtype, null without
    void* y;                   // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 3.0 * p.per_channel() * p.c; }
  static Table<BatchnormFwdInfer> impls(DeviceKind);
};

struct BatchnormBwd {
  static constexpr const char* kOp = "batchnorm";
  static constexpr const char* kPass = "bwd";
  using Problem = BatchnormProblem;
  struct Args {
    const void* dy;          // [N,H,W,C] dtype; with pool [N,H/2,W/2,C]
    const void* x;           // [N,H,W,C] dtype
    const void* gamma;       // [C] fp32
    const void* beta;        // [C] fp32
    const void* saved_mean;  // [C] fp32
    const void* saved_rstd;  // [C] fp32
    const void* mask;        // [N,H,W,ceil(C/8)] uint8, as fwd_train wrote it; null unless masked()
    const void* arg;         // [N,H/2,W/2,ceil(C/4)] uint8, as fwd_train wrote it; null without pool
    void* dx;                // [N,H,W,C] dtype
    void* dgamma;            // [C] fp32
    void* dbeta;             // [C] fp32
    void* dresidual;         // [N,H,W,C] dtype; null unless masked() (without activation it is dy)
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 11.0 * p.per_channel() * p.c; }
  static Table<BatchnormBwd> impls(DeviceKind);
  // saved_mean, saved_rstd: the statistics of x; mask, arg: random bits, unused bits 0
  static void derive(const Problem&, HostTensors&);
};

}  // namespace kiln
