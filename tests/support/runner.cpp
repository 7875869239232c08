#include "tests/support/runner.h"

#include <algorithm>
#include <cstdlib>
#include <list>

#include "kernels/common/error.h"
#include "tests/support/chunks.h"

namespace kiln {
namespace {

constexpr size_t kCacheBytes = size_t{1} << 29;

size_t bytes_of(const HostTensors& tensors) {
  size_t sum = 0;
  for (const HostTensor& t : tensors) sum += t.data.size();
  return sum;
}

// execute() by CUDA's naive, whose outputs are the largest that are downloaded: through the page-locked
// memory.
HostTensors naive_on_cuda(const PassInfo& pass, const AnyProblem& problem, const HostTensors& inputs) {
  const Device& device = cuda_device();
  const AnyPlan plan = pass.plan(problem, device, "naive");
  TensorBuffers buffers(pass.tensors(problem), device.kind);
  buffers.upload(inputs);
  DeviceMemory workspace(device.kind, plan.workspace_bytes);
  workspace.fill(0xff, 0, plan.workspace_bytes);
  const OwnedStream stream(device.kind);
  plan.bind(buffers.pointers(), workspace.data()).launch(stream.get());
  stream.synchronize();
  const std::vector<TensorView> views = shared_staging().download(buffers, device.kind);
  HostTensors outputs;
  for (size_t i = 0; i < views.size(); ++i) {
    TensorSpec spec = buffers.specs()[i];
    if (!spec.is_output()) spec.role = Role::kAbsent;
    HostTensor& output = outputs.emplace_back(spec);
    const auto* from = static_cast<const unsigned char*>(views[i].data);
    in_chunks<Sum>(static_cast<int64_t>(spec.bytes()), [&](int64_t begin, int64_t end) {
      std::copy(from + begin, from + end, output.data.data() + begin);
      return Sum{};
    });
  }
  return outputs;
}

std::shared_ptr<const Reference> compute_reference(const Case& c) {
  auto reference = std::make_shared<Reference>();
  reference->inputs = make_inputs(*c.pass, c.problem, c.dtype, c.seed, c.mode);
  const AnyProblem wide = c.pass->parse(c.problem, DType::kF32);
  double bytes = 0;
  for (const TensorSpec& spec : c.pass->tensors(wide)) bytes += static_cast<double>(spec.bytes());
  const bool small = c.pass->flops(wide) < kCpuJudgeFlops && bytes < c.cpu_judge_bytes;
  reference->outputs = small || !cuda_available()
                           ? execute(*c.pass, wide, cpu_device(), "cpu_naive", reference->inputs)
                           : naive_on_cuda(*c.pass, wide, reference->inputs);
  const std::vector<TensorView> views = views_of(reference->outputs);
  for (size_t i = 0; i < views.size(); ++i) {
    reference->rms.push_back(rms_of(views[i], reference->outputs[i].spec.elements()));
  }
  return reference;
}

// Derived values are not small integers even in exact mode.
bool has_narrow_derived(const Case& c) {
  for (const TensorSpec& spec : c.pass->tensors(c.pass->parse(c.problem, c.dtype))) {
    if (spec.is_input() && spec.fill == Fill::kDerived && spec.dtype == DType::kBF16) return true;
  }
  return false;
}

// How often a case is run again on the same data: KILN_TEST_REPEATS, 1.
int repeats() {
  const char* wanted = std::getenv("KILN_TEST_REPEATS");
  return wanted ? std::stoi(wanted) : 1;
}

std::string describe(const Case& c) {
  return c.row() + " on " + (c.device ? c.device->name : "?") + ", seed " + std::to_string(c.seed) + ", " +
         name_of(c.mode) + " data";
}

}  // namespace

std::string Case::row() const {
  return pass->row_prefix() + "/" + problem + "/" + name_of(dtype) + "/" + impl;
}

std::string Case::repeat() const {
  const std::string name = impl + "/" + name_of(dtype) + "/" + problem;
  std::string text = "ctest runs it as --gtest_filter='" + pass->row_prefix() + "." + name + "'; kiln op " +
                     pass->id() + " --problem " + problem + " --impl " + impl + " --dtype " + name_of(dtype) +
                     " --device " + (device && device->is_cuda() ? "cuda" : "cpu") + " --in";
  const std::vector<TensorSpec> specs = pass->tensors(pass->parse(problem, dtype));
  for (const TensorSpec& spec : specs) text += spec.is_input() ? " " + spec.name + ".npy" : "";
  text += " --out";
  for (const TensorSpec& spec : specs) text += spec.is_output() ? " " + spec.name + ".npy" : "";
  return text;
}

std::shared_ptr<const Reference> judge(const Case& c) {
  static std::list<std::pair<std::string, std::shared_ptr<const Reference>>> cache;  // newest first
  const bool rounded = c.dtype == DType::kBF16 && (c.mode == FillMode::kReal || has_narrow_derived(c));
  const std::string key = c.pass->id() + "/" + c.problem + "/" + name_of(c.mode) +
                          (rounded ? "/rounded/" : "/") + std::to_string(c.seed);
  for (auto it = cache.begin(); it != cache.end(); ++it) {
    if (it->first != key) continue;
    cache.splice(cache.begin(), cache, it);
    return cache.front().second;
  }
  size_t held = 0;
  for (auto it = cache.begin(); it != cache.end();) {
    held += bytes_of(it->second->inputs) + bytes_of(it->second->outputs);
    it = held > kCacheBytes ? cache.erase(it) : std::next(it);
  }
  cache.emplace_front(key, compute_reference(c));
  return cache.front().second;
}

Verdict wrong_verdict(const Case& c, const std::string& what) {
  return {false, describe(c) + ": " + what + "\n  repeat: " + c.repeat()};
}

HostTensors run(const Case& c, const HostTensors& inputs, unsigned char garbage) {
  return execute(
      *c.pass, c.pass->parse(c.problem, c.dtype), *c.device, c.impl, inputs,
      {.guard_bytes = c.undefined ? 0 : kGuardBytes, .workspace_fill = garbage, .undefined = c.undefined});
}

Verdict check(Case c) {
  try {
    bool exact = false;
    for (const TensorSpec& spec : c.pass->tensors(c.pass->parse(c.problem, c.dtype))) {
      exact = exact || (spec.is_output() && spec.check != Check::kReal);
    }
    for (const FillMode mode : {FillMode::kExact, FillMode::kReal}) {
      if (mode == FillMode::kExact && !exact) continue;
      c.mode = mode;
      const std::shared_ptr<const Reference> reference = judge(c);
      const HostTensors got = run(c, reference->inputs, 0xff);
      const Verdict verdict = compare(c, views_of(got), *reference);
      if (!verdict.ok) return verdict;
      if (mode != FillMode::kReal || c.peer) continue;
      for (int turn = 0; turn < repeats(); ++turn) {
        const HostTensors again = run(c, reference->inputs, turn % 2 ? 0xff : 0x3f);
        for (size_t i = 0; i < got.size(); ++i) {
          if (got[i].data != again[i].data) {
            return wrong_verdict(c, "'" + got[i].spec.name + "' differs between two runs on the same inputs");
          }
        }
      }
    }
    return {};
  } catch (const Error& error) {
    return wrong_verdict(c, error.what());
  }
}

}  // namespace kiln
