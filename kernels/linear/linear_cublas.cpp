// linear fwd, dgrad and wgrad by cuBLASLt: peers.
//
// cuBLASLt's matrices are column-major, so each pass is written for the transposed outputs:
//   y^T [K,N] = op_t(w) x,   dx^T [C,N] = w dy,   dw^T [C,K] = x op_t(dy)
// fp32 is CUBLAS_COMPUTE_32F (no tf32); bf16 accumulates in fp32, its split sums too, and dw is fp32. The
// config says which of the algorithms that cuBLASLt's heuristics return is taken:
//   "", "default"  the first       "algo<k>"  the k-th       "best"  the fastest of all, each tried once
#include <cublasLt.h>

#include <charconv>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/common/error.h"
#include "kernels/common/peer_trial.h"
#include "kernels/linear/linear.h"

namespace kiln {
namespace {

constexpr size_t kMaxWorkspace = size_t{32} << 20;  // bytes; what cuBLAS itself takes on Hopper
constexpr int kMaxAlgorithms = 32;

void check_cublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  cudaGetLastError();
  fail_failure(std::string(what) + ": " + cublasLtGetStatusString(status) + " (" +
               cublasLtGetStatusName(status) + ")");
}

using Handle = std::shared_ptr<cublasLtContext>;
using Layout = std::shared_ptr<cublasLtMatrixLayoutOpaque_t>;
using Operation = std::shared_ptr<cublasLtMatmulDescOpaque_t>;
using Preference = std::shared_ptr<cublasLtMatmulPreferenceOpaque_t>;

// The current device's handle; the plans that are alive own it.
Handle shared_handle() {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<cublasLtContext>> by_device;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  std::weak_ptr<cublasLtContext>& slot = by_device[device];
  Handle handle = slot.lock();
  if (!handle) {
    cublasLtHandle_t raw = nullptr;
    check_cublas(cublasLtCreate(&raw), "cublasLtCreate");
    slot = handle = Handle(raw, [](cublasLtHandle_t p) { cublasLtDestroy(p); });
  }
  return handle;
}

// One pass as cuBLASLt sees it, column-major: D [m,n] = op(A) [m,k] op(B) [k,n].
struct Gemm {
  int m, n, k;
  bool transpose_a, transpose_b;
  DType in, out;
  bool bias;  // D[i,j] += bias[i]
};

struct Operands {
  const void* a;
  const void* b;
  const void* bias;  // [m] fp32, null without
  void* d;
};

template <class Pass>
struct Traits;

template <>
struct Traits<LinearFwd> {
  static Gemm gemm(const LinearProblem& p) {
    return {p.k, p.n, p.c, true, false, p.dtype, p.out_dtype(), p.bias};
  }
  static Operands operands(const LinearFwd::Args& a) { return {a.w, a.x, a.bias, a.y}; }
};
template <>
struct Traits<LinearDgrad> {
  static Gemm gemm(const LinearProblem& p) {
    return {p.c, p.n, p.k, false, false, p.dtype, p.out_dtype(), false};
  }
  static Operands operands(const LinearDgrad::Args& a) { return {a.w, a.dy, nullptr, a.dx}; }
};
template <>
struct Traits<LinearWgrad> {
  static Gemm gemm(const LinearProblem& p) {
    return {p.c, p.k, p.n, false, true, p.dtype, DType::kF32, false};
  }
  static Operands operands(const LinearWgrad::Args& a) { return {a.x, a.dy, nullptr, a.dw}; }
};

cudaDataType_t cuda_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

// A packed column-major matrix.
Layout layout(DType dtype, int rows, int cols) {
  cublasLtMatrixLayout_t raw = nullptr;
  check_cublas(cublasLtMatrixLayoutCreate(&raw, cuda_type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), rows),
               "cublasLtMatrixLayoutCreate");
  return Layout(raw, [](cublasLtMatrixLayout_t p) { cublasLtMatrixLayoutDestroy(p); });
}

template <class Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t name, Value value) {
  check_cublas(cublasLtMatmulDescSetAttribute(operation.get(), name, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute");
}

Operation operation_of(const Gemm& g, const void* bias) {
  cublasLtMatmulDesc_t raw = nullptr;
  check_cublas(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Operation operation(raw, [](cublasLtMatmulDesc_t p) { cublasLtMatmulDescDestroy(p); });
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (g.bias) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  return operation;
}

Preference preference_of(const Gemm& g) {
  cublasLtMatmulPreference_t raw = nullptr;
  check_cublas(cublasLtMatmulPreferenceCreate(&raw), "cublasLtMatmulPreferenceCreate");
  Preference preference(raw, [](cublasLtMatmulPreference_t p) { cublasLtMatmulPreferenceDestroy(p); });
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof value),
                 "cublasLtMatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMaxWorkspace);
  for (const auto name :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(name, uint32_t{16});
  }
  // Partial sums are kept in fp32: with bf16 outputs only the schemes that use the compute type do so.
  const uint32_t schemes =
      g.out == DType::kF32 ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  return preference;
}

// A pass of a problem with the algorithms that cuBLASLt's heuristics return for it, best first.
struct Matmul {
  Gemm gemm;
  Handle handle = shared_handle();
  Layout a, b, d;
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms;

  explicit Matmul(const Gemm& g)
      : gemm(g),
        a(g.transpose_a ? layout(g.in, g.k, g.m) : layout(g.in, g.m, g.k)),
        b(g.transpose_b ? layout(g.in, g.n, g.k) : layout(g.in, g.k, g.n)),
        d(layout(g.out, g.m, g.n)),
        algorithms(kMaxAlgorithms) {
    // The bias is not known before bind; this address stands for its presence and alignment, and is never
    // read.
    const Operation operation = operation_of(gemm, reinterpret_cast<const void*>(uintptr_t{0x1010}));
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle.get(), operation.get(), a.get(), b.get(), d.get(), d.get(),
                                       preference_of(gemm).get(), kMaxAlgorithms, algorithms.data(), &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) count = 0;
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
    algorithms.resize(static_cast<size_t>(count));
    std::erase_if(algorithms, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
  }

  Bound bind(size_t algorithm, const Operands& args, void* workspace) const {
    const auto& chosen = algorithms.at(algorithm);
    return Bound([handle = handle, operation = operation_of(gemm, args.bias), a = a, b = b, d = d, args,
                  workspace, algo = chosen.algo, bytes = chosen.workspaceSize](Stream stream) {
      constexpr float kOne = 1.0f, kZero = 0.0f;
      check_cublas(
          cublasLtMatmul(handle.get(), operation.get(), &kOne, args.a, a.get(), args.b, b.get(), &kZero,
                         args.d, d.get(), args.d, d.get(), &algo, workspace, bytes, cuda_stream(stream)),
          "cublasLtMatmul");
    });
  }
};

template <class Pass>
[[noreturn]] void fail(const LinearProblem& p, const std::string& rule, ErrorKind kind) {
  throw Error(std::string(Pass::kOp) + "." + Pass::kPass + " cublas " + p.str() + " " + name_of(p.dtype) +
                  ": " + rule,
              kind);
}

Support supports_any(const LinearProblem& p, const Device& device) {
  if (!device.is_cuda()) return Support::no("the cuBLAS peer needs a CUDA device");
  return Support::require(p.dtype == DType::kF32 || p.dtype == DType::kBF16,
                          "the cuBLAS peer takes fp32 and bf16");
}

Support supports_fwd(const LinearProblem& p, const Device& device) {
  if (p.bias && p.out_dtype() == DType::kBF16)
    return Support::no("cuBLASLt wants a bias of the output's type, bf16");
  return supports_any(p, device);
}

Support supports_wgrad(const LinearProblem& p, const Device& device) {
  if (p.bias) return Support::no("the cuBLAS peer computes no bias gradient");
  return supports_any(p, device);
}

// Tries every algorithm once; the fastest that runs.
template <class Pass>
size_t fastest(const Matmul& matmul, const LinearProblem& p) {
  const TrialStream stream;
  const TrialArgs<Pass> scratch(p, stream);
  const DeviceBuffer workspace(kMaxWorkspace);
  size_t best = 0;
  double best_us = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < matmul.algorithms.size(); ++i) {
    try {
      const Bound bound = matmul.bind(i, Traits<Pass>::operands(scratch.args()), workspace.data());
      const double us = stream.time_us(bound);
      if (us < best_us) {
        best = i;
        best_us = us;
      }
    } catch (const Error&) {
      stream.wait();  // throws where the failure was more than a refusal
    }
  }
  return best;
}

template <class Pass>
size_t algorithm_of(const Matmul& matmul, const LinearProblem& p, std::string_view config) {
  if (config.empty() || config == "default") return 0;
  if (config == "best") return fastest<Pass>(matmul, p);
  constexpr std::string_view kPrefix = "algo";
  size_t k = 0;
  if (config.starts_with(kPrefix)) {
    const char* const first = config.data() + kPrefix.size();
    const char* const last = config.data() + config.size();
    const auto [end, error] = std::from_chars(first, last, k);
    if (first != last && end == last && error == std::errc() && k < matmul.algorithms.size()) return k;
  }
  fail<Pass>(p,
             "unknown config '" + std::string(config) + "'; known: default, best, algo0 ... algo" +
                 std::to_string(matmul.algorithms.size() - 1),
             ErrorKind::kUsage);
}

template <class Pass>
Plan<typename Pass::Args> plan(const LinearProblem& p, const Device&, std::string_view config) {
  using Args = typename Pass::Args;
  const auto matmul = std::make_shared<const Matmul>(Traits<Pass>::gemm(p));
  if (matmul->algorithms.empty()) fail<Pass>(p, "cuBLASLt has no algorithm for it", ErrorKind::kFailure);
  const size_t algorithm = algorithm_of<Pass>(*matmul, p, config);
  return Plan<Args>(matmul->algorithms[algorithm].workspaceSize,
                    [matmul, algorithm](const Args& args, void* workspace) {
                      require_aligned_args(&args, sizeof args);
                      return matmul->bind(algorithm, Traits<Pass>::operands(args), workspace);
                    });
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_cublas = {
    .name = "cublas", .supports = supports_fwd, .plan = plan<LinearFwd>, .peer = true};
extern const Impl<LinearDgrad> linear_dgrad_cublas = {
    .name = "cublas", .supports = supports_any, .plan = plan<LinearDgrad>, .peer = true};
extern const Impl<LinearWgrad> linear_wgrad_cublas = {
    .name = "cublas", .supports = supports_wgrad, .plan = plan<LinearWgrad>, .peer = true};

}  // namespace kiln
