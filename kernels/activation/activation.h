// activation: elementwise ops on NHWC tensors.
//
//   relu   y = x > 0 ? x : 0 (NaN stays NaN)         dx = y > 0 ? dy : 0
//   relu6  y = min(max(x, 0), 6) (NaN stays NaN)     dx = 0 < y < 6 ? dy : 0
//   gelu   y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2 (PyTorch's default, no tanh)
//                                                    dx = dy (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi))
//   silu   y = x s(x), s(x) = 1 / (1 + exp(-x))      dx = dy s(x) (1 + x (1 - s(x)))
//   add    y = a + b                                 da = dy, db = dy
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
struct Relu6Problem : ElementwiseProblem {
  static Relu6Problem parse(std::string_view text, DType dtype);
};
struct GeluProblem : ElementwiseProblem {
  static GeluProblem parse(std::string_view text, DType dtype);
};
struct SiluProblem : ElementwiseProblem {
  static SiluProblem parse(std::string_view text, DType dtype);
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

struct Relu6Fwd {
  static constexpr const char* kOp = "relu6";
  static constexpr const char* kPass = "fwd";
  using Problem = Relu6Problem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2.0 * p.elements(); }
  static Table<Relu6Fwd> impls(DeviceKind);
};

struct Relu6Bwd {
  static constexpr const char* kOp = "relu6";
  static constexpr const char* kPass = "bwd";
  using Problem = Relu6Problem;
  struct Args {
    const void* dy;  // [N,H,W,C] dtype
    const void* y;   // [N,H,W,C] dtype, the forward's output
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 2.0 * p.elements(); }
  static Table<Relu6Bwd> impls(DeviceKind);
};

struct GeluFwd {
  static constexpr const char* kOp = "gelu";
  static constexpr const char* kPass = "fwd";
  using Problem = GeluProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 5.0 * p.elements(); }
  static Table<GeluFwd> impls(DeviceKind);
};

struct GeluBwd {
  static constexpr const char* kOp = "gelu";
  static constexpr const char* kPass = "bwd";
  using Problem = GeluProblem;
  struct Args {
    const void* dy;  // [N,H,W,C] dtype
    const void* x;   // [N,H,W,C] dtype, the forward's input
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 10.0 * p.elements(); }
  static Table<GeluBwd> impls(DeviceKind);
};

struct SiluFwd {
  static constexpr const char* kOp = "silu";
  static constexpr const char* kPass = "fwd";
  using Problem = SiluProblem;
  struct Args {
    const void* x;  // [N,H,W,C] dtype
    void* y;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 4.0 * p.elements(); }
  static Table<SiluFwd> impls(DeviceKind);
};

struct SiluBwd {
  static constexpr const char* kOp = "silu";
  static constexpr const char* kPass = "bwd";
  using Problem = SiluProblem;
  struct Args {
    const void* dy;  // [N,H,W,C] dtype
    const void* x;   // [N,H,W,C] dtype, the forward's input
    void* dx;        // [N,H,W,C] dtype
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 7.0 * p.elements(); }
  static Table<SiluBwd> impls(DeviceKind);
};

// What a bwd of one input reads beside dy: its forward's output (relu, relu6) or input (gelu, silu).
template <class BwdArgs>
const void* saved_of(const BwdArgs& args) {
  if constexpr (requires { args.y; }) {
    return args.y;
  } else {
    return args.x;
  }
}

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
