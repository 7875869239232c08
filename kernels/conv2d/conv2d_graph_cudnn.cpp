#include "kernels/conv2d/conv2d_graph_cudnn.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "kernels/common/check.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

// Unique ids of tensors. kInner: a filter gradient on its way to kW, virtual or as bf16 in the workspace.
constexpr int64_t kX = 1, kW = 2, kY = 3, kInner = 4;

constexpr size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// cuDNN wants dimensions as [N,C,H,W] and [K,C,R,S]; the layout is in the strides.
CudnnDescriptor tensor(int64_t uid, cudnnDataType_t type, int64_t n, int64_t h, int64_t w, int64_t c,
                       bool is_virtual = false) {
  const std::array<int64_t, 4> dims{n, c, h, w}, strides{h * w * c, 1, w * c, c};
  return cudnn_graph_tensor(uid, type, dims, strides, is_virtual);
}

CudnnDescriptor filter(int64_t uid, cudnnDataType_t type, const Conv2dProblem& p, bool is_virtual = false) {
  return tensor(uid, type, p.k, p.r, p.s, p.c, is_virtual);
}

CudnnDescriptor convolution(const Conv2dProblem& p) {
  const std::array<int64_t, 2> padding{p.pad_h, p.pad_w}, stride{p.stride_h, p.stride_w}, dilation{1, 1};
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  return CudnnDescriptor(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
      .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
      .set_raw(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode)
      .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{2})
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, padding)
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, padding)
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, stride)
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, dilation)
      .finalize();
}

// The attribute names of one convolution operation.
struct Names {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
};

Names names_of(CudnnConvPass pass) {
  switch (pass) {
    case CudnnConvPass::kFwd:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    case CudnnConvPass::kDgrad:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    default:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
  }
}

CudnnDescriptor convolution_operation(CudnnConvPass pass, const Conv2dProblem& p,
                                      const CudnnDescriptor& filter) {
  const Names names = names_of(pass);
  const cudnnDataType_t type = cudnn_type(p.dtype);
  return CudnnDescriptor(names.type)
      .set(names.conv, convolution(p))
      .set(names.x, tensor(kX, type, p.n, p.h, p.w, p.c))
      .set(names.w, filter)
      .set(names.y, tensor(kY, type, p.n, p.p(), p.q(), p.k))
      .set(names.alpha, 1.0f)
      .set(names.beta, pass == CudnnConvPass::kDgrad && p.accumulate ? 1.0f : 0.0f)
      .finalize();
}

// wide = float(inner), tensors of one shape.
CudnnDescriptor widen_operation(const CudnnDescriptor& inner, const CudnnDescriptor& wide) {
  const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_IDENTITY;
  const CudnnDescriptor identity =
      CudnnDescriptor(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)
          .set_raw(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode)
          .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT)
          .finalize();
  return CudnnDescriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, identity)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, inner)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, wide)
      .finalize();
}

// The pass as one graph. wgrad of bf16 is a convolution and an identity: cuDNN's plain convolution engines
// write no fp32 filter gradient from bf16 operands, its fusion engines do.
std::vector<CudnnDescriptor> pass_operations(CudnnConvPass pass, const Conv2dProblem& p) {
  if (pass != CudnnConvPass::kWgrad || p.dtype != DType::kBF16) {
    return {convolution_operation(pass, p, filter(kW, cudnn_type(p.dtype), p))};
  }
  const CudnnDescriptor inner = filter(kInner, CUDNN_DATA_FLOAT, p, true);
  return {convolution_operation(pass, p, inner), widen_operation(inner, filter(kW, CUDNN_DATA_FLOAT, p))};
}

// Engines that do not compute what the problem's dtype promises are no peers: fp32 is FMA arithmetic on fp32
// operands, tf32 may round operands to tf32 but no further, and sums are kept in fp32 at least.
bool keeps_promise(const CudnnEngine& engine, DType dtype) {
  if (engine.has(CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)) return false;
  if (dtype == DType::kBF16) return true;
  if (engine.has(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)) return false;
  return dtype == DType::kTF32 || !engine.has(CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
}

// FFT and Winograd transforms round what the plain sum of small integers would keep.
bool is_exact(const CudnnEngine& engine) {
  for (const cudnnBackendNumericalNote_t transform :
       {CUDNN_NUMERICAL_NOTE_FFT, CUDNN_NUMERICAL_NOTE_WINOGRAD, CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
        CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6, CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13}) {
    if (engine.has(transform)) return false;
  }
  return true;
}

// The execution, or nothing where cuDNN refuses.
std::optional<CudnnExecution> try_execution(const CudnnGraph& graph, const CudnnEngine& engine) {
  try {
    return CudnnExecution(graph, engine);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// The graph of the operations that make() makes, or nothing where cuDNN does not take them.
template <class Make>
std::optional<CudnnGraph> try_graph(const std::shared_ptr<CudnnHandle>& handle, Make make) {
  try {
    return CudnnGraph(handle, make());
  } catch (const Error&) {
    return std::nullopt;
  }
}

// The first execution of the widening graph that cuDNN makes.
std::optional<CudnnExecution> make_widen(const CudnnGraph& graph) {
  for (const CudnnEngine& engine : graph.engines()) {
    std::optional<CudnnExecution> execution = try_execution(graph, engine);
    if (execution && execution->workspace_bytes() <= CudnnConv::kMaxWorkspace) return execution;
  }
  return std::nullopt;
}

// The same, made once for filters of so many elements and kept until the process ends, since cuDNN compiles
// it, which is slow; `graph` is the caller's, of his handle.
std::optional<CudnnExecution> shared_widen(const CudnnGraph& graph, size_t filter_elements) {
  struct Made {
    std::mutex mutex;
    std::optional<CudnnExecution> execution;
    bool tried = false;
  };
  static std::mutex mutex;
  static auto* const all = new std::map<std::pair<int, size_t>, Made>;  // by device and elements
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  Made* made = nullptr;
  {
    const std::lock_guard lock(mutex);
    made = &(*all)[{device, filter_elements}];
  }
  const std::lock_guard lock(made->mutex);
  if (!made->tried) made->execution = make_widen(graph);
  made->tried = true;
  return made->execution;
}

}  // namespace

CudnnConvPlan::CudnnConvPlan(CudnnExecution convolution, std::optional<CudnnExecution> widen,
                             size_t inner_bytes)
    : convolution_(std::move(convolution)), widen_(std::move(widen)) {
  widen_offset_ = round_up(convolution_.workspace_bytes());
  inner_offset_ = widen_offset_ + (widen_ ? round_up(widen_->workspace_bytes()) : 0);
  workspace_bytes_ = inner_offset_ + inner_bytes;
}

Bound CudnnConvPlan::bind(const CudnnConvOperands& operands, void* workspace,
                          std::shared_ptr<const CudnnConvPlan> keep) const {
  const std::array<int64_t, 3> uids{kX, widen_ ? kInner : kW, kY};
  std::array<void*, 3> pointers{operands.x, operands.w, operands.y};
  if (!widen_) {
    const CudnnDescriptor pack = convolution_.pack(uids, pointers, workspace);
    return Bound([keep, pack](Stream stream) { keep->convolution_.launch(pack, stream); });
  }
  char* const base = static_cast<char*>(workspace);
  pointers[1] = base + inner_offset_;
  const CudnnDescriptor pack = convolution_.pack(uids, pointers, workspace);
  const std::array<int64_t, 2> widen_uids{kInner, kW};
  const std::array<void*, 2> widen_pointers{pointers[1], operands.w};
  const CudnnDescriptor widen_pack = widen_->pack(widen_uids, widen_pointers, base + widen_offset_);
  return Bound([keep, pack, widen_pack](Stream stream) {
    keep->convolution_.launch(pack, stream);
    keep->widen_->launch(widen_pack, stream);
  });
}

CudnnConv::CudnnConv(CudnnConvPass pass, const Conv2dProblem& problem, std::shared_ptr<CudnnHandle> handle)
    : dtype_(problem.dtype),
      filter_elements_(size_t{1} * problem.k * problem.r * problem.s * problem.c),
      handle_(std::move(handle)) {
  graph_ = try_graph(handle_, [&] { return pass_operations(pass, problem); });
  if (graph_) list(*graph_, false);
  if (pass == CudnnConvPass::kWgrad && dtype_ == DType::kBF16) list_through_bf16(problem);
  std::stable_partition(entries_.begin(), entries_.end(), [](const Entry& e) { return e.exact; });
}

// A bf16 filter gradient in the workspace, widened by a second graph.
void CudnnConv::list_through_bf16(const Conv2dProblem& problem) {
  bf16_graph_ = try_graph(handle_, [&] {
    const CudnnDescriptor inner = filter(kInner, CUDNN_DATA_BFLOAT16, problem);
    return std::vector{convolution_operation(CudnnConvPass::kWgrad, problem, inner)};
  });
  widen_graph_ =
      try_graph(handle_, [&] {  // as one long row: cuDNN refuses the smallest filters in their own shape
        const auto elements = static_cast<int64_t>(filter_elements_);
        return std::vector{widen_operation(tensor(kInner, CUDNN_DATA_BFLOAT16, 1, 1, 1, elements),
                                           tensor(kW, CUDNN_DATA_FLOAT, 1, 1, 1, elements))};
      });
  if (bf16_graph_ && widen_graph_) list(*bf16_graph_, true);
}

void CudnnConv::list(const CudnnGraph& graph, bool through_bf16) {
  for (CudnnEngine& engine : graph.engines()) {
    if (!keeps_promise(engine, dtype_)) continue;
    const bool exact = !through_bf16 && is_exact(engine);
    entries_.push_back({std::move(engine), through_bf16, exact});
  }
}

CudnnPlanInfo CudnnConv::info(size_t k) const {
  const Entry& entry = entries_.at(k);
  std::string notes = entry.engine.notes_text();
  if (entry.through_bf16) notes += notes.empty() ? "dw_through_bf16" : " dw_through_bf16";
  return {.config = "plan" + std::to_string(k),
          .engine = entry.engine.tag,
          .notes = std::move(notes),
          .exact = entry.exact,
          .us = std::numeric_limits<double>::quiet_NaN()};
}

std::shared_ptr<const CudnnConvPlan> CudnnConv::make(size_t k) {
  const Entry& entry = entries_.at(k);
  std::optional<CudnnExecution> convolution =
      try_execution(entry.through_bf16 ? *bf16_graph_ : *graph_, entry.engine);
  if (!convolution || convolution->workspace_bytes() > kMaxWorkspace) return nullptr;
  if (!entry.through_bf16) return std::make_shared<CudnnConvPlan>(std::move(*convolution), std::nullopt, 0);
  std::optional<CudnnExecution> widen = shared_widen(*widen_graph_, filter_elements_);
  if (!widen) return nullptr;
  return std::make_shared<CudnnConvPlan>(std::move(*convolution), std::move(widen), 2 * filter_elements_);
}

}  // namespace kiln
