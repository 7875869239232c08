// Program: the steps of one batch size and mode, bound to memory and, where the device can, recorded as one
// graph.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "nn/backend.h"
#include "nn/step_list.h"

namespace kiln {

class Program {
 public:
  // keep_all: no two buffers share memory, so that every value can be read after the run.
  Program(Backend* backend, StepList list, bool keep_all = false);

  // What bind() needs at bases[kArena]: buffers, then the workspace that all steps share.
  size_t arena_bytes() const { return buffers_bytes_ + workspace_bytes_; }
  // Must be called before the first launch, and again when an address changes.
  void bind(const Bases& bases);

  // Enqueues all steps. Allocates nothing. With `recorded`, the second launch records the steps and this and
  // every later one replays them; the first runs step by step, so that kernels are loaded before a recording.
  void launch(bool recorded);
  // Enqueues the steps of these phases, one by one.
  void launch(Phase first, Phase last);
  // Enqueues all steps one by one, and calls before(i) ahead of step i and once behind the last.
  void launch_each(const std::function<void(size_t step)>& before);
  // Names each step to NVIDIA's tools (NVTX range "<layer> <pass>") where it is launched one by one.
  void show_ranges() { ranges_ = true; }

  const StepList& list() const { return list_; }
  void* address(int buffer) const;

 private:
  void launch_step(size_t i);

  Backend* backend_;
  StepList list_;
  size_t buffers_bytes_ = 0, workspace_bytes_ = 0;
  Bases bases_{};
  std::vector<Bound> bound_;
  std::unique_ptr<Recording> recording_;
  bool warm_ = false, unrecordable_ = false, ranges_ = false;
};

}  // namespace kiln
