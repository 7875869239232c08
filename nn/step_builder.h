// Appends steps to a StepList: picks an implementation, plans it, checks the buffers against the pass's
// tensors.
#pragma once

#include <cstring>
#include <memory>

#include "kernels/common/error.h"
#include "kernels/common/impl_choice.h"
#include "nn/step_list.h"

namespace kiln {

class StepBuilder {
 public:
  StepBuilder(const Device& device, const ImplChoice& choice, std::string network, StepList* list)
      : device_(device), choice_(choice), network_(std::move(network)), list_(list) {}

  int buffer(const std::string& name, Home home, size_t offset, size_t bytes) {
    list_->buffers.push_back({name, home, offset, bytes});
    return static_cast<int>(list_->buffers.size()) - 1;
  }
  int arena(const std::string& name, size_t bytes) { return buffer(name, Home::kArena, 0, bytes); }

  // True where the implementation that would be picked for `plain` also supports `variant`. With kOthers also
  // where the user has no wish and another of kiln's own, `naive` aside, would be picked for `variant`: for
  // ops whose fast kernels are about as fast as each other.
  template <class Pass, bool kOthers = false>
  bool offers(const std::string& layer, const typename Pass::Problem& plain,
              const typename Pass::Problem& variant) const {
    if (pick_for<Pass>(layer, plain).impl->supports(variant, device_)) return true;
    if (!kOthers || !choice_.wish(Pass::kOp, Pass::kPass, device_.kind).name.empty()) return false;
    for (const Impl<Pass>* impl : Pass::impls(device_.kind)) {
      if (detail::picks_unasked(*impl, variant, device_)) {
        return !std::string_view(impl->name).ends_with("naive");
      }
    }
    return false;
  }

  // True where the implementation that would be picked for `problem` thinks that what it gives beside its
  // result spares the next step more than it takes.
  template <class Pass>
  bool gains(const std::string& layer, const typename Pass::Problem& problem) const {
    const Impl<Pass>* impl = pick_for<Pass>(layer, problem).impl;
    return impl->gains && impl->gains(problem, device_);
  }

  // True where `Other` can do `problem` in the place of Pass: the user has no wish for Pass, or names an
  // implementation that Other has too.
  template <class Pass, class Other>
  bool replaces(const typename Pass::Problem& problem) const {
    const std::string wish = choice_.wish(Pass::kOp, Pass::kPass, device_.kind).name;
    for (const Impl<Other>* impl : Other::impls(device_.kind)) {
      const bool wished = wish.empty() ? detail::picks_unasked(*impl, problem, device_)
                                       : wish.substr(0, wish.find(':')) == impl->name;
      if (wished && impl->supports(problem, device_)) return true;
    }
    return false;
  }

  // One buffer a pointer of Pass::Args. Throws Error naming the layer where no implementation, or not the one
  // wished for, supports the problem.
  template <class Pass>
  void emit(Phase phase, const std::string& layer, const typename Pass::Problem& problem,
            std::vector<int> buffers) {
    using Args = typename Pass::Args;
    const Picked<Pass> picked = pick_for<Pass>(layer, problem);
    require_fitting(layer, Pass::kOp, Pass::kPass, Pass::tensors(problem), buffers);
    Step step{.phase = phase,
              .layer = layer,
              .pass = std::string(Pass::kOp) + "." + Pass::kPass,
              .problem = problem.str(),
              .impl = picked.impl->name,
              .passed_over = picked.passed_over,
              .buffers = std::move(buffers)};
    if (!picked.config.empty()) step.impl += ":" + picked.config;
    const auto plan = naming(layer, [&] {
      return std::make_shared<Plan<Args>>(plan_of(*picked.impl, problem, device_, picked.config));
    });
    step.workspace_bytes = plan->workspace_bytes();
    step.bind = [plan](std::span<void* const> pointers, void* workspace) {
      static_assert(sizeof(Args) % sizeof(void*) == 0, "Args is an aggregate of pointers");
      Args args;
      std::memcpy(&args, pointers.data(), sizeof(Args));
      return plan->bind(args, workspace);
    };
    list_->steps.push_back(std::move(step));
  }

  // A step that is no op's pass.
  void emit_custom(Step step) { list_->steps.push_back(std::move(step)); }

  StepList& list() { return *list_; }
  const Device& device() const { return device_; }

 private:
  // Runs `work`; an Error from it is thrown again with the layer's name in front.
  template <class Work>
  auto naming(const std::string& layer, const Work& work) const {
    try {
      return work();
    } catch (const Error& error) {
      throw Error("network '" + network_ + "': layer '" + layer + "': " + error.what(), error.kind());
    }
  }

  template <class Pass>
  Picked<Pass> pick_for(const std::string& layer, const typename Pass::Problem& problem) const {
    return naming(layer, [&] {
      if constexpr (requires { problem.validate(); }) {
        problem.validate();
      } else {
        problem.validate(Pass::kOp);
      }
      return pick<Pass>(problem, device_, choice_);
    });
  }

  void require_fitting(const std::string& layer, const char* op, const char* pass,
                       const std::vector<TensorSpec>& tensors, const std::vector<int>& buffers) const;

  const Device& device_;
  const ImplChoice& choice_;
  std::string network_;
  StepList* list_;
};

}  // namespace kiln
