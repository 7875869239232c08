// The --impl grammar, the same everywhere:
//   conv2d.fwd=wgmma:128x256x64_s4,batchnorm.*=naive        comma separates assignments, later ones win
//   *=naive|cudnn                                           '|' alternatives, where a command compares several
// The left side is <op>.<pass> with '*' and '?' globs ("conv2d" alone means "conv2d.*", "*" means "*.*"); the
// right side is <name> or <name>:<config>.
#pragma once

#include <string>
#include <string_view>
#include <vector>

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
  // Throws Error for a malformed text, or for an assignment that matches no compiled pass, or an exact pass that
  // lacks the name (nearest suggested). A glob skips passes that lack it (see skipped()).
  explicit ImplChoice(std::string_view text);

  // What the user wishes for this pass: "name[:config]", or "" for none. Throws where '|' was given but one
  // implementation is needed.
  std::string wish(std::string_view op, std::string_view pass, DeviceKind device) const;
  // All alternatives for this pass, {} for none.
  std::vector<std::string> alternatives(std::string_view op, std::string_view pass, DeviceKind device) const;
  // "<op>.<pass>" of the compiled passes that a glob matched but that lack its implementation on `device`.
  std::vector<std::string> skipped(DeviceKind device) const;
  const std::string& str() const { return text_; }

 private:
  std::string text_;
  std::vector<Assignment> assignments_;
};

// Names of the implementations compiled for a pass: from the registry.
std::vector<std::string> impl_names(std::string_view op, std::string_view pass, DeviceKind device);

namespace detail {
[[noreturn]] void fail_no_impl(const char* op, const char* pass, const std::string& problem, const Device& device);
[[noreturn]] void fail_unsupported(const char* op, const char* pass, const char* impl, const std::string& problem,
                                   const char* rule);
}  // namespace detail

template <class Pass>
struct Picked {
  const Impl<Pass>* impl;
  std::string config;
};

// The user's wish if there is one (an Error where that does not support the problem), else the first in the
// table that supports it and is no peer.
template <class Pass>
Picked<Pass> pick(const typename Pass::Problem& problem, const Device& device, const ImplChoice& choice) {
  const std::string wish = choice.wish(Pass::kOp, Pass::kPass, device.kind);
  const std::string name = wish.substr(0, wish.find(':'));
  for (const Impl<Pass>* impl : Pass::impls(device.kind)) {
    const Support support = impl->supports(problem, device);
    if (wish.empty()) {
      if (!impl->peer && support) return {impl, ""};
    } else if (name == impl->name) {
      if (!support) detail::fail_unsupported(Pass::kOp, Pass::kPass, impl->name, problem.str(), support.rule());
      return {impl, wish.size() > name.size() ? wish.substr(name.size() + 1) : ""};
    }
  }
  detail::fail_no_impl(Pass::kOp, Pass::kPass, problem.str(), device);
}

}  // namespace kiln
