// make_pass<P>(): turns an op's typed pass into a PassInfo.
#pragma once

#include <cstring>

#include "kernels/common/error.h"
#include "kernels/common/impl_choice.h"
#include "kernels/common/registry.h"

namespace kiln::detail {

template <class Pass>
const typename Pass::Problem& problem_of(const AnyProblem& any) {
  return *static_cast<const typename Pass::Problem*>(any.value.get());
}

template <class Pass>
const Impl<Pass>& find_impl(const AnyProblem& any, const Device& device, std::string_view name) {
  std::vector<std::string> names;
  for (const Impl<Pass>* impl : Pass::impls(device.kind)) {
    if (name == impl->name) return *impl;
    names.emplace_back(impl->name);
  }
  fail_usage(std::string(Pass::kOp) + "." + Pass::kPass + " " + any.text + ": " +
             unknown_name_message("implementation", name, names));
}

template <class Pass>
PassInfo make_pass() {
  using Problem = typename Pass::Problem;
  using Args = typename Pass::Args;
  static_assert(std::is_standard_layout_v<Args> && sizeof(Args) % sizeof(void*) == 0,
                "Args is a plain aggregate of pointers, one a TensorSpec, in the same order");
  PassInfo info;
  info.op = Pass::kOp;
  info.pass = Pass::kPass;
  info.parse = [](std::string_view text, DType dtype) {
    auto problem = std::make_shared<const Problem>(Problem::parse(text, dtype));
    return AnyProblem{problem, problem->str(), dtype};
  };
  info.tensors = [](const AnyProblem& any) { return Pass::tensors(problem_of<Pass>(any)); };
  info.flops = [](const AnyProblem& any) { return Pass::flops(problem_of<Pass>(any)); };
  info.compulsory_bytes = [](const AnyProblem& any) {
    if constexpr (requires { Pass::compulsory_bytes(problem_of<Pass>(any)); }) {
      return Pass::compulsory_bytes(problem_of<Pass>(any));
    }
    double bytes = 0;
    for (const TensorSpec& t : Pass::tensors(problem_of<Pass>(any))) {
      if (t.is_input()) bytes += static_cast<double>(t.bytes());
      if (t.is_output()) bytes += static_cast<double>(t.bytes());
    }
    return bytes;
  };
  info.impls = [](DeviceKind kind) {
    std::vector<ImplInfo> list;
    for (const Impl<Pass>* impl : Pass::impls(kind)) list.push_back({impl->name, impl->peer});
    return list;
  };
  info.supports = [](const AnyProblem& any, const Device& device, std::string_view impl) {
    return find_impl<Pass>(any, device, impl.substr(0, impl.find(':')))
        .supports(problem_of<Pass>(any), device);
  };
  info.choices = [](const AnyProblem& any, const Device& device) {
    return tuning_choices<Pass>(problem_of<Pass>(any), device);
  };
  info.plan = [](const AnyProblem& any, const Device& device, std::string_view choice) {
    const std::string_view name = choice.substr(0, choice.find(':'));
    const Impl<Pass>& impl = find_impl<Pass>(any, device, name);
    const Support support = impl.supports(problem_of<Pass>(any), device);
    if (!support) fail_unsupported(Pass::kOp, Pass::kPass, impl.name, any.text, support.rule());
    const std::string_view config = choice.size() > name.size() ? choice.substr(name.size() + 1) : "";
    auto plan = std::make_shared<Plan<Args>>(plan_of(impl, problem_of<Pass>(any), device, config));
    AnyPlan any_plan;
    any_plan.workspace_bytes = plan->workspace_bytes();
    any_plan.bind = [plan](std::span<void* const> tensors, void* workspace) {
      Args args;
      if (tensors.size() * sizeof(void*) != sizeof(Args)) {
        fail_failure(std::string(Pass::kOp) + "." + Pass::kPass + ": tensor list and Args differ in length");
      }
      std::memcpy(&args, tensors.data(), sizeof(Args));
      return plan->bind(args, workspace);
    };
    return any_plan;
  };
  info.derive = [](const AnyProblem& any, HostTensors& tensors) {
    if constexpr (requires { Pass::derive(problem_of<Pass>(any), tensors); }) {
      Pass::derive(problem_of<Pass>(any), tensors);
    }
  };
  if constexpr (requires(const Problem& p) { Pass::positions(p, std::vector<const void*>{}); }) {
    info.positions = [](const AnyProblem& any, const std::vector<const void*>& tensors) {
      return Pass::positions(problem_of<Pass>(any), tensors);
    };
  }
  return info;
}

}  // namespace kiln::detail
