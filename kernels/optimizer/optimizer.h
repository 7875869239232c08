// optimizer: parameter updates over one contiguous slab, in one launch.
//
//   clipping   g = grad * min(1, clip / (norm + 1e-6)), norm from grad_norm (PyTorch's clip_grad_norm_), the
//              factor computed in fp32 everywhere; without clip g = grad
//   sgd        g' = g + wd * w (for the first `decayed` parameters, else g)
//              v  = momentum * v + g'                     (PyTorch's SGD: no dampening, v starts at 0)
//              w -= lr * (nesterov ? g' + momentum * v : v)
//   adamw      w *= 1 - lr * wd (for the first `decayed` parameters)           (PyTorch's AdamW)
//              m = b1 * m + (1 - b1) * g,  v = b2 * v + (1 - b2) * g^2,  both start at 0
//              w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps),  t = StepState.step + 1
//   both       lr, step and the finite flag come from StepState; where finite is 0 nothing is changed
//   grad_norm  norm[0] = sqrt(sum g^2), summed in fixed order (NaN or infinity where a gradient is)
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/step_state.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct SgdProblem {
  long long n = 1;        // parameters in the slab
  long long decayed = 0;  // the first `decayed` of them have weight decay
  float momentum = 0.0f;
  float weight_decay = 0.0f;
  bool nesterov = false;
  float clip = 0.0f;          // largest gradient norm, 0: no clipping
  DType dtype = DType::kF32;  // of the working copy: fp32 has none (the master is used), bf16 a copy
  // "n1000[_d900][_m0.9][_wd0.0005][_nesterov][_clip1]"
  std::string str() const;
  static SgdProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct SgdStep {
  static constexpr const char* kOp = "sgd";
  static constexpr const char* kPass = "step";
  using Problem = SgdProblem;
  struct Args {
    const void* step;  // StepState
    const void* grad;  // [n] fp32
    const void* norm;  // [1] fp32, the norm of grad; null without clip
    void* param;       // [n] fp32 master, in and out
    void* velocity;    // [n] fp32, in and out
    void* copy;        // [n] dtype, rounded from param; null for fp32
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 6.0 * static_cast<double>(p.n); }
  static Table<SgdStep> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // step: lr 0.125, finite 1; norm: of grad
};

struct AdamwProblem {
  long long n = 1;        // parameters in the slab
  long long decayed = 0;  // the first `decayed` of them have weight decay
  float beta1 = 0.9f, beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 0.0f;
  float clip = 0.0f;          // largest gradient norm, 0: no clipping
  DType dtype = DType::kF32;  // of the working copy, as in SgdProblem
  // "n1000[_d900][_ba0.8][_bb0.99][_eps0.000001][_wd0.01][_clip1]" (ba: beta1, bb: beta2)
  std::string str() const;
  static AdamwProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct AdamwStep {
  static constexpr const char* kOp = "adamw";
  static constexpr const char* kPass = "step";
  using Problem = AdamwProblem;
  struct Args {
    const void* step;     // StepState
    const void* grad;     // [n] fp32
    const void* norm;     // [1] fp32, the norm of grad; null without clip
    void* param;          // [n] fp32 master, in and out
    void* first_moment;   // [n] fp32, m, in and out
    void* second_moment;  // [n] fp32, v, in and out
    void* copy;           // [n] dtype, rounded from param; null for fp32
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 14.0 * static_cast<double>(p.n); }
  static Table<AdamwStep> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // step: lr 0.125, step 6, finite 1; norm: of grad
};

struct GradNormProblem {
  long long n = 1;
  DType dtype = DType::kF32;  // fp32 only
  // "n1000"
  std::string str() const;
  static GradNormProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct GradNorm {
  static constexpr const char* kOp = "grad_norm";
  static constexpr const char* kPass = "fwd";
  using Problem = GradNormProblem;
  struct Args {
    const void* grad;  // [n] fp32
    void* norm;        // [1] fp32
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2.0 * static_cast<double>(p.n); }
  static Table<GradNorm> impls(DeviceKind);
};

}  // namespace kiln
