#include "harness/execute.h"

#include <utility>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr unsigned char kGuardByte = 0xA5;

bool is_narrow(DType dtype) { return dtype == DType::kBF16; }

std::vector<uint16_t> to_bf16(const float* values, int64_t count) {
  std::vector<uint16_t> bits(static_cast<size_t>(count));
#pragma omp parallel for schedule(static) if (count > 65536)
  for (int64_t i = 0; i < count; ++i) bits[i] = bf16_bits(values[i]);
  return bits;
}

bool all_guard(const DeviceMemory& memory, size_t offset, size_t bytes) {
  std::vector<unsigned char> guard(bytes);
  memory.download(guard.data(), bytes, offset);
  for (const unsigned char byte : guard) {
    if (byte != kGuardByte) return false;
  }
  return true;
}

}  // namespace

void round_values(DType dtype, float* values, int64_t count) {
  if (!is_narrow(dtype)) return;
#pragma omp parallel for schedule(static) if (count > 65536)
  for (int64_t i = 0; i < count; ++i) values[i] = round_to_bf16(values[i]);
}

TensorBuffers::TensorBuffers(std::vector<TensorSpec> specs, DeviceKind kind, size_t guard_bytes)
    : specs_(std::move(specs)), guard_bytes_(guard_bytes) {
  for (const TensorSpec& spec : specs_) {
    if (spec.dtype == DType::kF16) fail_usage("tensor '" + spec.name + "': fp16 is not supported here");
    memory_.emplace_back(kind, spec.role == Role::kAbsent ? 0 : spec.bytes() + 2 * guard_bytes_);
  }
}

void TensorBuffers::upload(const HostTensors& inputs, bool fill_outputs) {
  if (inputs.size() != specs_.size()) fail_failure("execute: as many tensors as the pass has are needed");
  for (size_t i = 0; i < specs_.size(); ++i) {
    const TensorSpec& spec = specs_[i];
    if (spec.role == Role::kAbsent) continue;
    DeviceMemory& memory = memory_[i];
    memory.fill(kGuardByte, 0, guard_bytes_);
    memory.fill(kGuardByte, guard_bytes_ + spec.bytes(), guard_bytes_);
    if (!spec.is_input()) {
      if (fill_outputs) memory.fill(0xff, guard_bytes_, spec.bytes());
      continue;
    }
    const HostTensor& input = inputs[i];
    if (input.spec.elements() != spec.elements())
      fail_failure("execute: tensor '" + spec.name + "' has another size");
    if (is_narrow(spec.dtype)) {
      memory.upload(to_bf16(input.as<float>(), spec.elements()).data(), spec.bytes(), guard_bytes_);
    } else {
      memory.upload(input.data.data(), spec.bytes(), guard_bytes_);
    }
  }
}

void TensorBuffers::copy_from(const TensorBuffers& other) {
  for (size_t i = 0; i < memory_.size(); ++i) memory_[i].copy_from(other.memory_[i]);
}

HostTensors TensorBuffers::download() const {
  HostTensors outputs;
  for (size_t i = 0; i < specs_.size(); ++i) {
    const TensorSpec& spec = specs_[i];
    TensorSpec wide = spec;
    if (is_narrow(spec.dtype)) wide.dtype = DType::kF32;
    if (!spec.is_output()) wide.role = Role::kAbsent;
    HostTensor& tensor = outputs.emplace_back(wide);
    if (!spec.is_output()) continue;
    if (!is_narrow(spec.dtype)) {
      memory_[i].download(tensor.data.data(), spec.bytes(), guard_bytes_);
      continue;
    }
    std::vector<uint16_t> bits(static_cast<size_t>(spec.elements()));
    memory_[i].download(bits.data(), spec.bytes(), guard_bytes_);
    float* values = tensor.as<float>();
    const int64_t count = spec.elements();
#pragma omp parallel for schedule(static) if (count > 65536)
    for (int64_t j = 0; j < count; ++j) values[j] = bf16_value(bits[j]);
  }
  return outputs;
}

std::string TensorBuffers::broken_guard() const {
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].role == Role::kAbsent) continue;
    if (!all_guard(memory_[i], 0, guard_bytes_))
      return "guard bytes before '" + specs_[i].name + "' were overwritten";
    if (!all_guard(memory_[i], guard_bytes_ + specs_[i].bytes(), guard_bytes_)) {
      return "guard bytes behind '" + specs_[i].name + "' were overwritten";
    }
  }
  return "";
}

std::vector<void*> TensorBuffers::pointers() const {
  std::vector<void*> list;
  for (size_t i = 0; i < specs_.size(); ++i) {
    list.push_back(specs_[i].role == Role::kAbsent ? nullptr : memory_[i].data() + guard_bytes_);
  }
  return list;
}

size_t TensorBuffers::bytes() const {
  size_t sum = 0;
  for (const TensorSpec& spec : specs_) sum += spec.bytes();
  return sum;
}

HostTensors execute(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                    std::string_view impl, const HostTensors& inputs, const ExecuteOptions& options) {
  const AnyPlan plan = pass.plan(problem, device, impl);
  TensorBuffers buffers(pass.tensors(problem), device.kind, options.guard_bytes);
  buffers.upload(inputs, !options.undefined);
  const size_t guard = options.guard_bytes;
  DeviceMemory workspace(device.kind, plan.workspace_bytes ? plan.workspace_bytes + 2 * guard : 0);
  if (workspace.bytes() && !options.undefined) {
    workspace.fill(kGuardByte, 0, workspace.bytes());
    workspace.fill(options.workspace_fill, guard, plan.workspace_bytes);
  }
  const OwnedStream stream(device.kind);
  const Bound bound = plan.bind(buffers.pointers(), workspace.bytes() ? workspace.data() + guard : nullptr);
  bound.launch(stream.get());
  stream.synchronize();
  std::string broken = buffers.broken_guard();
  if (broken.empty() && workspace.bytes() &&
      !(all_guard(workspace, 0, guard) && all_guard(workspace, guard + plan.workspace_bytes, guard))) {
    broken = "guard bytes around the workspace were overwritten";
  }
  if (!broken.empty()) {
    fail_failure(pass.id() + " " + problem.text + ": implementation '" + std::string(impl) + "': " + broken);
  }
  return buffers.download();
}

}  // namespace kiln
