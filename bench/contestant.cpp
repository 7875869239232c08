#include "bench/contestant.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "kernels/common/error.h"

#ifdef KILN_WITH_CUDA
#include "kernels/common/check.h"
#endif

namespace kiln {
namespace {

constexpr double kL2Rotation = 3;
constexpr size_t kMostSets = 512, kMostBytes = size_t{24} << 30;
constexpr size_t kTriedSets = 3;  // are run before they are timed

// Runs body(i) for all of `list` in threads of their own, on the caller's GPU.
template <class Body>
void in_threads(const std::vector<size_t>& list, const Body& body) {
#ifdef KILN_WITH_CUDA
  int gpu = 0;
  if (cuda_available()) check_cuda(cudaGetDevice(&gpu), "cudaGetDevice");
#endif
  std::vector<std::thread> threads;
  for (const size_t i : list) {
    threads.emplace_back([&, i] {
#ifdef KILN_WITH_CUDA
      if (cuda_available()) cudaSetDevice(gpu);
#endif
      body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

bool is_naive(const std::string& impl) { return impl == "naive" || impl == "cpu_naive"; }

RotatedBuffers::RotatedBuffers(const std::vector<TensorSpec>& specs, const Device& device,
                               const HostTensors& inputs)
    : kept_(specs, device.kind, kGuardBytes) {
  kept_.upload(inputs);
  size_t count = 1;
  if (device.is_cuda()) {
    const size_t bytes = std::max<size_t>(kept_.bytes(), 1);
    const auto wanted = static_cast<size_t>(kL2Rotation * static_cast<double>(device.l2_bytes)) / bytes + 2;
    count = std::min({wanted, kMostSets, std::max<size_t>(2, kMostBytes / bytes)});
  }
  for (size_t i = 0; i < count; ++i) {
    sets_.push_back(std::make_unique<TensorBuffers>(specs, device.kind, kGuardBytes));
    sets_.back()->copy_from(kept_);
  }
}

std::vector<PlannedRow> plan_rows(const std::vector<LayerRow>& rows, const AnyProblem& problem,
                                  const Device& device) {
  std::vector<PlannedRow> planned(rows.size());
  const auto make = [&](size_t i) {
    try {
      planned[i].plan = rows[i].pass->plan(problem, device, rows[i].impl);
    } catch (const std::exception& error) {
      planned[i].error = error.what();
    }
  };
  std::vector<size_t> apart;
  for (size_t i = 0; i < rows.size(); ++i) {
    // "best" times on the GPU while it is made: alone.
    const bool slow_to_make = rows[i].peer && rows[i].impl.starts_with("cudnn");
    if (slow_to_make && !rows[i].impl.ends_with(":best")) apart.push_back(i);
  }
  in_threads(apart, make);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::find(apart.begin(), apart.end(), i) == apart.end()) make(i);
  }
  return planned;
}

Contestant::Contestant(const LayerRow& row, AnyPlan its, const Device& device, const RotatedBuffers& buffers,
                       RowResult* its_result)
    : result(its_result),
      naive(is_naive(row.impl)),
      plan(std::move(its)),
      workspace(device.kind, plan.workspace_bytes) {
  for (const auto& set : buffers.sets()) bounds.push_back(plan.bind(set->pointers(), workspace.data()));
}

void Contestant::gate(const Case& c, RotatedBuffers& buffers, const Reference& reference) const {
  const OwnedStream stream(c.device->kind);
  buffers.restore_first();
  bounds[0].launch(stream.get());
  stream.synchronize();
  const TensorBuffers& first = *buffers.sets()[0];
  const std::string broken = first.broken_guard();
  if (!broken.empty()) fail_failure(broken);
  const Verdict verdict = compare(c, shared_staging().download(first, c.device->kind), reference);
  if (!verdict.ok) fail_failure(verdict.message);
  if (naive) return;  // it is timed on the first set alone
  for (size_t s = 1; s < std::min(bounds.size(), kTriedSets); ++s) bounds[s].launch(stream.get());
  stream.synchronize();
}

}  // namespace kiln
