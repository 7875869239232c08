// cuDNN's graph API, as far as the peers need it: descriptors, a graph of operations, the engine
// configurations that cuDNN's heuristics offer for it, execution plans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/cudnn/handle.h"

namespace kiln {

// A backend descriptor. Copies share it.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);

  // Attributes; all throw Error on a refusal. Each returns *this.
  CudnnDescriptor& set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                           const void* values);
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, std::span<const int64_t> values);
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, int64_t value);
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, float value);
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, cudnnDataType_t value);
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value);
  CudnnDescriptor& finalize();  // throws Error on a refusal

  cudnnBackendDescriptor_t get() const { return descriptor_.get(); }

 private:
  std::shared_ptr<void> descriptor_;
};

// A tensor of a graph, 16-byte aligned, known by `uid`. Dimensions and strides (elements) in one order. A
// virtual tensor lies between two operations and never reaches memory.
CudnnDescriptor cudnn_graph_tensor(int64_t uid, cudnnDataType_t type, std::span<const int64_t> dims,
                                   std::span<const int64_t> strides, bool is_virtual);

// One way to run a graph: an engine with its knobs set.
struct CudnnEngine {
  CudnnDescriptor config;
  std::string tag;  // "eng34_k2=9_k27=1": engine index, knob type = value
  std::vector<cudnnBackendNumericalNote_t> notes;
  bool has(cudnnBackendNumericalNote_t note) const;
  std::string notes_text() const;  // "tensor_core nondeterministic", "" for none
};

// A graph of operations. Throws Error where cuDNN does not take them.
class CudnnGraph {
 public:
  CudnnGraph(std::shared_ptr<CudnnHandle> handle, std::vector<CudnnDescriptor> operations);
  // What the heuristics offer, their order kept, each once: mode B, mode A, then the fallback engines.
  std::vector<CudnnEngine> engines() const;
  const std::shared_ptr<CudnnHandle>& handle() const { return handle_; }

 private:
  std::shared_ptr<CudnnHandle> handle_;
  std::vector<CudnnDescriptor> operations_;
  CudnnDescriptor graph_;
};

// An engine made ready to run.
class CudnnExecution {
 public:
  // Throws Error where the engine turns out not to support the graph.
  CudnnExecution(const CudnnGraph& graph, const CudnnEngine& engine);
  size_t workspace_bytes() const { return workspace_bytes_; }
  // uids and pointers in one order; workspace may be null where workspace_bytes() is 0.
  CudnnDescriptor pack(std::span<const int64_t> uids, std::span<void* const> pointers, void* workspace) const;
  void launch(const CudnnDescriptor& pack, Stream stream) const;

 private:
  std::shared_ptr<CudnnHandle> handle_;
  CudnnDescriptor plan_;
  size_t workspace_bytes_ = 0;
};

}  // namespace kiln
