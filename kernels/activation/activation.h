// activation: elementwise ops on NHWC tensors.
//
//   relu fwd  y = x > 0 ? x : 0 (NaN stays NaN);   relu bwd  dx = y > 0 ? dy : 0
//   add fwd   y = a + b;                           add bwd   da = dy, db = dy
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

// Shape of an elementwise op; which op it is, is the pass's.
struct ElementwiseProblem {
  int n = 1, h = 1, w = 1, c = 1;
  DType dtype = DType::kF32;
  long long elements() const { return 1LL * n * h * w * c; }
  // "n512_h32_w32_c64"; h, w and c default to 1, or w to h.
  std::string str() const;
  void validate(std::string_view op) const;
};

struct ReluProblem : ElementwiseProblem {
  static ReluProblem parse(std::string_view text, DType dtype);
};
struct AddProblem : ElementwiseProblem {
  static AddProblem parse(std::string_view text, DType dtype);
};

struct ReluFwd {
  static constexpr const char* kOp = "relu";
  static constexpr const char* kPass = "fwd";
  using Problem = ReluProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.elements(); }
  static Table<ReluFwd> impls(DeviceKind);
};

struct ReluBwd {
  static constexpr const char* kOp = "relu";
  static constexpr const char* kPass = "bwd";
  using Problem = ReluProblem;
  struct Args {
    const void* dy;  // [N,H,W,C] dtype
    const void* y;   // [N,H,W,C] dtype, the forward's output
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.elements(); }
  static Table<ReluBwd> impls(DeviceKind);
};

struct AddFwd {
  static constexpr const char* kOp = "add";
  static constexpr const char* kPass = "fwd";
  using Problem = AddProblem;
  struct Args {
    const void* a;  // [N,H,W,C] dtype
    const void* b;  // [N,H,W,C] dtype
    void* y;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 1.0 * p.elements(); }
  static Table<AddFwd> impls(DeviceKind);
};

struct AddBwd {
  static constexpr const char* kOp = "add";
  static constexpr const char* kPass = "bwd";
  using Problem = AddProblem;
  struct Args {
    const void* dy;  // [N,H,W,C] dtype
    void* da;        // [N,H,W,C] dtype
    void* db;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem&) { return 0; }
  static Table<AddBwd> impls(DeviceKind);
};

}  // namespace kiln
