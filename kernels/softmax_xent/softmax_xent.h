// softmax_xent: softmax and cross-entropy in one, with label smoothing (PyTorch's CrossEntropyLoss, mean).
//
//   t[n,k]   = smoothing/K + (1 - smoothing) * [k == label[n]]
//   row_loss = -sum_k t[n,k] * log softmax(x[n])[k]
//   summary  = {mean of row_loss, number of rows whose first largest logit is the label}
//   dx[n,k]  = (softmax(x[n])[k] - t[n,k]) / N
//
// A label outside [0, K) makes that row's loss NaN and its dx NaN, so that it cannot pass unseen.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct SoftmaxXentProblem {
  int n = 1, c = 2;  // rows, classes
  float smoothing = 0.0f;
  DType dtype = DType::kF32;  // of the logits and their gradient
  // "n2000_c10[_ls0.1]"
  std::string str() const;
  static SoftmaxXentProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct SoftmaxXentFwd {
  static constexpr const char* kOp = "softmax_xent";
  static constexpr const char* kPass = "fwd";
  using Problem = SoftmaxXentProblem;
  struct Args {
    const void* x;       // [N,K] dtype
    const void* labels;  // [N] int32
    void* row_loss;      // [N] fp32
    void* summary;       // [2] fp32: mean loss, correct rows
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 5.0 * p.n * p.c; }
  static Table<SoftmaxXentFwd> impls(DeviceKind);
};

struct SoftmaxXentFwdBwd {
  static constexpr const char* kOp = "softmax_xent";
  static constexpr const char* kPass = "fwd_bwd";
  using Problem = SoftmaxXentProblem;
  struct Args {
    const void* x;       // [N,K] dtype
    const void* labels;  // [N] int32
    void* row_loss;      // [N] fp32
    void* summary;       // [2] fp32: mean loss, correct rows
    void* dx;            // [N,K] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 8.0 * p.n * p.c; }
  static Table<SoftmaxXentFwdBwd> impls(DeviceKind);
};

}  // namespace kiln
