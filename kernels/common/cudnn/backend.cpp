#include "kernels/common/cudnn/backend.h"

#include <algorithm>
#include <array>
#include <set>

namespace kiln {
namespace {

constexpr int64_t kAlignment = 16;  // bytes; what every kiln tensor has

CudnnDescriptor engine_of(const CudnnDescriptor& config) {
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  int64_t count = 0;
  check_cudnn(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &raw),
              "cuDNN engine of a configuration");
  return engine;
}

std::vector<cudnnBackendNumericalNote_t> notes_of(const CudnnDescriptor& engine) {
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  int64_t count = 0;
  check_cudnn(
      cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                               CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes.data()),
      "cuDNN numerical notes");
  notes.resize(static_cast<size_t>(std::min<int64_t>(count, CUDNN_NUMERICAL_NOTE_TYPE_COUNT)));
  return notes;
}

std::string tag_of(const CudnnDescriptor& config, const CudnnDescriptor& engine) {
  int64_t index = -1, count = 0;
  check_cudnn(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1,
                                       &count, &index),
              "cuDNN engine index");
  std::string tag = "eng" + std::to_string(index);
  std::vector<CudnnDescriptor> choices;
  std::array<cudnnBackendDescriptor_t, CUDNN_KNOB_TYPE_COUNTS> raw{};
  for (cudnnBackendDescriptor_t& slot : raw) {
    choices.emplace_back(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    slot = choices.back().get();
  }
  check_cudnn(
      cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               CUDNN_KNOB_TYPE_COUNTS, &count, raw.data()),
      "cuDNN knobs of a configuration");
  for (int64_t i = 0; i < std::min<int64_t>(count, CUDNN_KNOB_TYPE_COUNTS); ++i) {
    cudnnBackendKnobType_t type{};
    int64_t value = 0, one = 0;
    check_cudnn(cudnnBackendGetAttribute(raw[static_cast<size_t>(i)], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                                         CUDNN_TYPE_KNOB_TYPE, 1, &one, &type),
                "cuDNN knob type");
    check_cudnn(cudnnBackendGetAttribute(raw[static_cast<size_t>(i)], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE,
                                         CUDNN_TYPE_INT64, 1, &one, &value),
                "cuDNN knob value");
    tag.append("_k").append(std::to_string(static_cast<int>(type)));
    tag.append("=").append(std::to_string(value));
  }
  return tag;
}

// One mode's configurations, best first; none where the mode knows nothing of such a graph.
std::vector<CudnnDescriptor> heuristic_configs(const CudnnDescriptor& graph, cudnnBackendHeurMode_t mode) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set_raw(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  int64_t count = 0;
  if (cudnnBackendFinalize(heuristics.get()) != CUDNN_STATUS_SUCCESS) return {};
  if (cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               0, &count, nullptr) != CUDNN_STATUS_SUCCESS) {
    return {};
  }
  std::vector<CudnnDescriptor> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i) {
    configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(configs.back().get());
  }
  if (configs.empty()) return configs;
  int64_t written = 0;
  check_cudnn(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &written, raw.data()),
              "cuDNN heuristics' results");
  configs.resize(static_cast<size_t>(std::min(count, written)));
  return configs;
}

const char* name_of_note(cudnnBackendNumericalNote_t note) {
  switch (note) {
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      return "tensor_core";
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
      return "down_convert_inputs";
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
      return "reduced_precision_reduction";
    case CUDNN_NUMERICAL_NOTE_FFT:
      return "fft";
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
      return "nondeterministic";
    case CUDNN_NUMERICAL_NOTE_WINOGRAD:
      return "winograd";
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
      return "winograd_tile_4x4";
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
      return "winograd_tile_6x6";
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13:
      return "winograd_tile_13x13";
    default:
      return nullptr;
  }
}

}  // namespace

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t raw = nullptr;
  check_cudnn(cudnnBackendCreateDescriptor(type, &raw), "cudnnBackendCreateDescriptor");
  descriptor_ = std::shared_ptr<void>(raw, [](void* p) { cudnnBackendDestroyDescriptor(p); });
}

CudnnDescriptor& CudnnDescriptor::set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                          int64_t count, const void* values) {
  const cudnnStatus_t status = cudnnBackendSetAttribute(get(), name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS) {
    check_cudnn(status, ("cudnnBackendSetAttribute " + std::to_string(static_cast<int>(name))).c_str());
  }
  return *this;
}
CudnnDescriptor& CudnnDescriptor::set(cudnnBackendAttributeName_t name, std::span<const int64_t> values) {
  return set_raw(name, CUDNN_TYPE_INT64, static_cast<int64_t>(values.size()), values.data());
}
CudnnDescriptor& CudnnDescriptor::set(cudnnBackendAttributeName_t name, int64_t value) {
  return set_raw(name, CUDNN_TYPE_INT64, 1, &value);
}
CudnnDescriptor& CudnnDescriptor::set(cudnnBackendAttributeName_t name, float value) {
  return set_raw(name, CUDNN_TYPE_FLOAT, 1, &value);
}
CudnnDescriptor& CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
  return set_raw(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
}
CudnnDescriptor& CudnnDescriptor::set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
  const cudnnBackendDescriptor_t raw = value.get();
  return set_raw(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
}
CudnnDescriptor& CudnnDescriptor::finalize() {
  check_cudnn(cudnnBackendFinalize(get()), "cudnnBackendFinalize");
  return *this;
}

CudnnDescriptor cudnn_graph_tensor(int64_t uid, cudnnDataType_t type, std::span<const int64_t> dims,
                                   std::span<const int64_t> strides, bool is_virtual) {
  return CudnnDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR)
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, dims)
      .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment)
      .set_raw(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual)
      .finalize();
}

bool CudnnEngine::has(cudnnBackendNumericalNote_t note) const {
  return std::find(notes.begin(), notes.end(), note) != notes.end();
}

std::string CudnnEngine::notes_text() const {
  std::string text;
  for (const cudnnBackendNumericalNote_t note : notes) {
    const char* const name = name_of_note(note);
    if (name && !text.empty()) text += ' ';
    if (name) text += name;
  }
  return text;
}

CudnnGraph::CudnnGraph(std::shared_ptr<CudnnHandle> handle, std::vector<CudnnDescriptor> operations)
    : handle_(std::move(handle)),
      operations_(std::move(operations)),
      graph_(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
  std::vector<cudnnBackendDescriptor_t> nodes;
  for (const CudnnDescriptor& operation : operations_) nodes.push_back(operation.get());
  handle_->with([&](cudnnHandle_t raw) {
    graph_
        .set_raw(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 static_cast<int64_t>(nodes.size()), nodes.data())
        .set_raw(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &raw)
        .finalize();
  });
}

std::vector<CudnnEngine> CudnnGraph::engines() const {
  return handle_->with([&](cudnnHandle_t) {
    std::vector<CudnnEngine> engines;
    std::set<std::string> seen;
    for (const auto mode : {CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
      for (const CudnnDescriptor& config : heuristic_configs(graph_, mode)) {
        const CudnnDescriptor engine = engine_of(config);
        std::string tag = tag_of(config, engine);
        if (!seen.insert(tag).second) continue;
        engines.push_back({config, std::move(tag), notes_of(engine)});
      }
    }
    return engines;
  });
}

CudnnExecution::CudnnExecution(const CudnnGraph& graph, const CudnnEngine& engine)
    : handle_(graph.handle()), plan_(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
  handle_->with([&](cudnnHandle_t raw) {
    plan_.set_raw(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &raw)
        .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine.config)
        .finalize();
    int64_t bytes = 0, count = 0;
    check_cudnn(cudnnBackendGetAttribute(plan_.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                         CUDNN_TYPE_INT64, 1, &count, &bytes),
                "cuDNN workspace size");
    workspace_bytes_ = static_cast<size_t>(bytes);
  });
}

CudnnDescriptor CudnnExecution::pack(std::span<const int64_t> uids, std::span<void* const> pointers,
                                     void* workspace) const {
  return CudnnDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
      .set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids)
      .set_raw(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
               static_cast<int64_t>(pointers.size()), pointers.data())
      .set_raw(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace)
      .finalize();
}

void CudnnExecution::launch(const CudnnDescriptor& pack, Stream stream) const {
  handle_->on(stream, [&](cudnnHandle_t raw) {
    check_cudnn(cudnnBackendExecute(raw, plan_.get(), pack.get()), "cudnnBackendExecute");
  });
}

}  // namespace kiln
