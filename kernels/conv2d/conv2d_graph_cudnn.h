// The three convolution passes as cuDNN graphs: the list of plans that may run one, and a plan made from it.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/common/cudnn/backend.h"
#include "kernels/conv2d/conv2d_cudnn.h"

namespace kiln {

enum class CudnnConvPass { kFwd, kDgrad, kWgrad };

// The operands under their forward names: dgrad writes x, wgrad writes w, the others read them.
struct CudnnConvOperands {
  void* x;  // [N,H,W,C] dtype
  void* w;  // [K,R,S,C] dtype; wgrad: fp32
  void* y;  // [N,P,Q,K] dtype
};

// A plan ready to run.
class CudnnConvPlan {
 public:
  // widen: the second step of a plan whose filter gradient comes out as bf16, in inner_bytes of the
  // workspace.
  CudnnConvPlan(CudnnExecution convolution, std::optional<CudnnExecution> widen, size_t inner_bytes);
  size_t workspace_bytes() const { return workspace_bytes_; }
  // keep: this plan's owner, which the result holds.
  Bound bind(const CudnnConvOperands& operands, void* workspace,
             std::shared_ptr<const CudnnConvPlan> keep) const;

 private:
  CudnnExecution convolution_;
  std::optional<CudnnExecution> widen_;
  size_t widen_offset_ = 0, inner_offset_ = 0, workspace_bytes_ = 0;
};

// A pass of a problem with its list of plans (conv2d_cudnn.h says which and in which order).
class CudnnConv {
 public:
  // handle: plans are built with it, and run with it.
  CudnnConv(CudnnConvPass pass, const Conv2dProblem& problem, std::shared_ptr<CudnnHandle> handle);
  size_t size() const { return entries_.size(); }
  // config, engine, notes and exact of the k-th plan; the rest is not known before it is made.
  CudnnPlanInfo info(size_t k) const;
  // Null where cuDNN does not make the plan, or only with more than kMaxWorkspace.
  std::shared_ptr<const CudnnConvPlan> make(size_t k);

  static constexpr size_t kMaxWorkspace = size_t{1} << 30;  // bytes

 private:
  struct Entry {
    CudnnEngine engine;
    bool through_bf16;  // of the graph whose filter gradient is bf16
    bool exact;
  };
  void list(const CudnnGraph& graph, bool through_bf16);
  void list_through_bf16(const Conv2dProblem& problem);

  DType dtype_;
  size_t filter_elements_;  // K*R*S*C
  std::shared_ptr<CudnnHandle> handle_;
  std::optional<CudnnGraph> graph_, bf16_graph_, widen_graph_;
  std::vector<Entry> entries_;
};

}  // namespace kiln
