// linear: fully connected layer.
//
//   fwd    y[n,k]  = bias[k] + sum_c x[n,c] * w[k,c]
//   dgrad  dx[n,c] = sum_k dy[n,k] * w[k,c]
//   wgrad  dw[k,c] = sum_n dy[n,k] * x[n,c],  dbias[k] = sum_n dy[n,k]
//
// Inputs have the problem's dtype, bias and the gradients of parameters are fp32. y and dx have the dtype
// too, or with f32_out fp32: sums that leave as they were accumulated.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct LinearProblem {
  int n = 1, c = 1, k = 1;  // rows, input features, output features
  bool bias = false;
  bool f32_out = false;  // y and dx are fp32, whatever the dtype
  DType dtype = DType::kF32;
  DType out_dtype() const { return f32_out ? DType::kF32 : dtype; }  // of y and dx
  double macs() const { return 1.0 * n * c * k; }
  // The same problem without bias: whose tuned choices may serve this one.
  std::vector<LinearProblem> plainer() const;
  // "n512_c2048_k10[_bias][_f32out]"
  std::string str() const;
  static LinearProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct LinearFwd {
  static constexpr const char* kOp = "linear";
  static constexpr const char* kPass = "fwd";
  using Problem = LinearProblem;
  struct Args {
    const void* x;     // [N,C] dtype
    const void* w;     // [K,C] dtype
    const void* bias;  // [K] fp32, null without bias
    void* y;           // [N,K] out_dtype()
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<LinearFwd> impls(DeviceKind);
};

struct LinearDgrad {
  static constexpr const char* kOp = "linear";
  static constexpr const char* kPass = "dgrad";
  using Problem = LinearProblem;
  struct Args {
    const void* dy;  // [N,K] dtype
    const void* w;   // [K,C] dtype
    void* dx;        // [N,C] out_dtype()
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<LinearDgrad> impls(DeviceKind);
};

struct LinearWgrad {
  static constexpr const char* kOp = "linear";
  static constexpr const char* kPass = "wgrad";
  using Problem = LinearProblem;
  struct Args {
    const void* dy;  // [N,K] dtype
    const void* x;   // [N,C] dtype
    void* dw;        // [K,C] fp32, whatever the dtype
    void* dbias;     // [K] fp32, null without bias
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2 * p.macs(); }
  static Table<LinearWgrad> impls(DeviceKind);
};

}  // namespace kiln
