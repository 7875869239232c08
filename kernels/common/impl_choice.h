// The --impl grammar, the same everywhere:
//   conv2d.fwd=wgmma:128x256x64_s4,batchnorm.*=naive        comma separates assignments, later ones win
//   *=naive|cudnn                                           '|' alternatives, where a command compares
//   several
// The left side is <op>.<pass> with '*' and '?' globs ("conv2d" alone means "conv2d.*", "*" means "*.*"); the
// right side is <name> or <name>:<config>.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/error.h"
#include "kernels/common/impl.h"

namespace kiln {

// True where `text` matches `pattern` ('*': any run, '?': any one character).
bool glob_match(std::string_view pattern, std::string_view text);

class ImplChoice {
 public:
  struct Assignment {
    std::string op_glob, pass_glob;
    std::vector<std::string> alternatives;  // "name" or "name:config"
    bool is_glob() const;
  };

  ImplChoice() = default;  // no wishes: the heuristic decides
  // Throws Error for a malformed text, or for an assignment that matches no compiled pass, or an exact pass
  // that lacks the name (nearest suggested). A glob skips passes that lack it (see skipped()).
  explicit ImplChoice(std::string_view text);

  struct Wish {
    std::string name;        // "name[:config]", "" for none
    bool from_glob = false;  // a glob gives way where its implementation does not support a problem
  };
  // What the user wishes for this pass. Throws where '|' was given but one implementation is needed.
  Wish wish(std::string_view op, std::string_view pass, DeviceKind device) const;
  // All alternatives for this pass, {} for none.
  std::vector<std::string> alternatives(std::string_view op, std::string_view pass, DeviceKind device) const;
  // "<op>.<pass>" of the compiled passes that a glob matched but that lack its implementation on `device`.
  std::vector<std::string> skipped(DeviceKind device) const;
  const std::string& str() const { return text_; }

  // Asked where the user has no wish: the tuned choice for a key (tuning_key()) and a signature of what there
  // is to choose from (tuning_signature()), "" for none.
  using Tuned = std::function<std::string(const std::string& key, const std::string& signature)>;
  void set_tuned(Tuned tuned) { tuned_ = std::move(tuned); }
  const Tuned& tuned() const { return tuned_; }

 private:
  struct Found {
    std::vector<std::string> alternatives;
    bool from_glob = false;
  };
  Found find(std::string_view op, std::string_view pass, DeviceKind device) const;

  std::string text_;
  std::vector<Assignment> assignments_;
  Tuned tuned_;
};

// Names of the implementations compiled for a pass: from the registry.
std::vector<std::string> impl_names(std::string_view op, std::string_view pass, DeviceKind device);

namespace detail {
[[noreturn]] void fail_no_impl(const char* op, const char* pass, const std::string& problem,
                               const Device& device);
[[noreturn]] void fail_unsupported(const char* op, const char* pass, const char* impl,
                                   const std::string& problem, const char* rule);
// Throws `error` again with op, pass, problem and implementation in front, unless it names the problem.
[[noreturn]] void fail_in_plan(const char* op, const char* pass, const char* impl, const std::string& problem,
                               const Error& error);
}  // namespace detail

// impl.plan(problem, device, config), whose errors, and those of its bind, name op, pass, problem and
// implementation.
template <class Pass>
Plan<typename Pass::Args> plan_of(const Impl<Pass>& impl, const typename Pass::Problem& problem,
                                  const Device& device, std::string_view config) {
  using Args = typename Pass::Args;
  try {
    Plan<Args> plan = impl.plan(problem, device, config);
    const size_t workspace_bytes = plan.workspace_bytes();
    return Plan<Args>(workspace_bytes, [plan = std::move(plan), name = impl.name, text = problem.str()](
                                           const Args& args, void* workspace) {
      try {
        return plan.bind(args, workspace);
      } catch (const Error& error) {
        detail::fail_in_plan(Pass::kOp, Pass::kPass, name, text, error);
      }
    });
  } catch (const Error& error) {
    detail::fail_in_plan(Pass::kOp, Pass::kPass, impl.name, problem.str(), error);
  }
}

namespace detail {
// The heuristic: kiln's own, in the table's order, where nobody has a wish.
template <class Pass>
bool picks_unasked(const Impl<Pass>& impl, const typename Pass::Problem& problem, const Device& device) {
  return !impl.peer && impl.supports(problem, device) && (!impl.preferred || impl.preferred(problem, device));
}
}  // namespace detail

// What `kiln tune` tries: kiln's own implementations that support the problem, each with its configs; first
// what the heuristic picks.
template <class Pass>
std::vector<std::string> tuning_choices(const typename Pass::Problem& problem, const Device& device) {
  std::vector<std::string> choices;
  for (const bool unasked : {true, false}) {
    for (const Impl<Pass>* impl : Pass::impls(device.kind)) {
      if (impl->peer || !impl->supports(problem, device)) continue;
      if (detail::picks_unasked(*impl, problem, device) != unasked) continue;
      const std::vector<std::string> configs =
          impl->configs ? impl->configs(problem, device) : std::vector<std::string>();
      if (configs.empty()) choices.emplace_back(impl->name);
      for (const std::string& config : configs)
        choices.push_back(std::string(impl->name).append(":").append(config));
    }
  }
  return choices;
}

// "conv2d.fwd/n512_h32_w32_c64_k64_r3_st1_p1/bf16".
std::string tuning_key(std::string_view op, std::string_view pass, const std::string& problem, DType dtype);
// A hash of the choices: where it differs, a tuned choice was made among others and does not count.
std::string tuning_signature(const std::vector<std::string>& choices);

template <class Pass>
struct Picked {
  const Impl<Pass>* impl;
  std::string config;
  // "cudnn: <rule>" where a glob's implementation, or one tuned for the problem without its epilogue, does
  // not support the problem
  std::string passed_over;
  bool tuned = false;  // the tuning cache's choice
};

namespace detail {

// The problems whose tuned choice may be taken for `problem`: itself, then those that its plainer() lists.
template <class Problem>
std::vector<Problem> tuned_problems(const Problem& problem) {
  std::vector<Problem> list = {problem};
  if constexpr (requires { problem.plainer(); }) {
    for (Problem& plain : problem.plainer()) list.push_back(std::move(plain));
  }
  return list;
}

// Why a choice that was tuned for a plainer problem is none for this one; "" where it is one. A config counts
// where it is among those worth a trial here.
template <class Pass>
std::string refusal_of_tuned(const Impl<Pass>& impl, const std::string& config,
                             const typename Pass::Problem& problem, const Device& device) {
  if (const Support support = impl.supports(problem, device); !support) return support.rule();
  if (config.empty()) return "";
  const auto configs = impl.configs ? impl.configs(problem, device) : std::vector<std::string>();
  const bool known = std::find(configs.begin(), configs.end(), config) != configs.end();
  return known ? "" : "this config does not take the problem";
}

// Puts the tuning cache's choice into `picked`: the problem's own, else that of the same problem with less of
// an epilogue, where the implementation and the config that it names take this one too.
template <class Pass>
void pick_tuned(const typename Pass::Problem& problem, const Device& device, const ImplChoice& choice,
                Picked<Pass>* picked) {
  const std::string own = problem.str();
  for (const typename Pass::Problem& tuned : tuned_problems(problem)) {
    const std::string text = tuned.str();
    const std::string best = choice.tuned()(tuning_key(Pass::kOp, Pass::kPass, text, tuned.dtype),
                                            tuning_signature(tuning_choices<Pass>(tuned, device)));
    if (best.empty()) continue;
    const size_t colon = best.find(':');
    const std::string config = colon == std::string::npos ? "" : best.substr(colon + 1);
    for (const Impl<Pass>* impl : Pass::impls(device.kind)) {
      if (best.substr(0, colon) != impl->name) continue;
      const std::string refusal = text == own ? std::string(impl->supports(problem, device).rule())
                                              : refusal_of_tuned(*impl, config, problem, device);
      if (refusal.empty()) {
        *picked = {impl, config, "", true};
        return;
      }
      picked->passed_over = best + ", tuned for " + text + ": " + refusal;
    }
  }
}

}  // namespace detail

// The user's wish if there is one, else the tuning cache's, else the first in the table that supports the
// problem and is no peer. A wish that does not support the problem is an Error if the pass was named exactly,
// and passed over if a glob matched it.
template <class Pass>
Picked<Pass> pick(const typename Pass::Problem& problem, const Device& device, const ImplChoice& choice) {
  const ImplChoice::Wish wish = choice.wish(Pass::kOp, Pass::kPass, device.kind);
  const std::string name = wish.name.substr(0, wish.name.find(':'));
  Picked<Pass> picked{nullptr, "", "", false};
  for (const Impl<Pass>* impl : Pass::impls(device.kind)) {
    const Support support = impl->supports(problem, device);
    if (!wish.name.empty() && name == impl->name) {
      if (support) {
        return {impl, wish.name.size() > name.size() ? wish.name.substr(name.size() + 1) : "", "", false};
      }
      if (!wish.from_glob) {
        detail::fail_unsupported(Pass::kOp, Pass::kPass, impl->name, problem.str(), support.rule());
      }
      picked.passed_over = "--impl's " + name + ": " + support.rule();
    }
    if (!picked.impl && detail::picks_unasked(*impl, problem, device)) picked.impl = impl;
  }
  if (picked.impl && wish.name.empty() && choice.tuned()) {
    detail::pick_tuned(problem, device, choice, &picked);
  }
  if (picked.impl) return picked;
  detail::fail_no_impl(Pass::kOp, Pass::kPass, problem.str(), device);
}

}  // namespace kiln
