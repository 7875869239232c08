#include "nn/program.h"

#include <algorithm>

#ifdef KILN_WITH_CUDA
#include "nn/ranges.h"
#endif

namespace kiln {

Program::Program(Backend* backend, StepList list, bool keep_all) : backend_(backend), list_(std::move(list)) {
  buffers_bytes_ = plan_arena(&list_, keep_all);
  for (const Step& step : list_.steps) workspace_bytes_ = std::max(workspace_bytes_, step.workspace_bytes);
}

void* Program::address(int buffer) const {
  if (buffer == kNoBuffer) return nullptr;
  const Buffer& b = list_.buffers[buffer];
  return static_cast<char*>(bases_[static_cast<size_t>(b.home)]) + b.offset;
}

void Program::bind(const Bases& bases) {
  bases_ = bases;
  recording_.reset();
  bound_.clear();
  void* workspace = static_cast<char*>(bases[static_cast<size_t>(Home::kArena)]) + buffers_bytes_;
  for (const Step& step : list_.steps) {
    std::vector<void*> pointers;
    for (int buffer : step.buffers) pointers.push_back(address(buffer));
    bound_.push_back(step.bind(pointers, step.workspace_bytes ? workspace : nullptr));
  }
}

void Program::launch(bool recorded) {
  const auto launch_all = [this] { launch(Phase::kInput, Phase::kUpdate); };
  if (recorded && warm_ && !recording_ && !unrecordable_) {
    recording_ = backend_->record(launch_all);
    unrecordable_ = !recording_;
  }
  if (recorded && recording_) {
    recording_->launch();
  } else {
    launch_all();
  }
  warm_ = true;
}

void Program::launch(Phase first, Phase last) {
  for (size_t i = 0; i < bound_.size(); ++i) {
    if (list_.steps[i].phase >= first && list_.steps[i].phase <= last) launch_step(i);
  }
}

void Program::launch_each(const std::function<void(size_t step)>& before) {
  for (size_t i = 0; i < bound_.size(); ++i) {
    before(i);
    launch_step(i);
  }
  before(bound_.size());
}

void Program::launch_step(size_t i) {
#ifdef KILN_WITH_CUDA
  const RangeScope range(ranges_ ? list_.steps[i].layer + " " + list_.steps[i].pass : "");
#endif
  bound_[i].launch(backend_->stream());
}

}  // namespace kiln
