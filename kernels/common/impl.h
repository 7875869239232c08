// Implementations, plans and tables: how kiln names and runs one way of doing one pass of an op.
//
//   const Impl<Conv2dFwd>& impl = pick<Conv2dFwd>(problem, device, choice);
//   auto plan  = plan_of(impl, problem, device, config);       // owns what is expensive
//   auto bound = plan.bind({.x = x, .w = w, .y = y}, workspace);  // tensor maps, argument packs
//   bound.launch(stream);                                      // asynchronous; allocates and synchronises
//   nothing
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/common/device.h"

namespace kiln {

// supports()'s answer: yes, or the rule that is broken ("channels must be a multiple of 8").
class Support {
 public:
  static constexpr Support yes() { return Support(nullptr); }
  static constexpr Support no(const char* rule) { return Support(rule); }
  // yes where `holds`, else no(rule).
  static constexpr Support require(bool holds, const char* rule) { return Support(holds ? nullptr : rule); }
  constexpr explicit operator bool() const { return rule_ == nullptr; }
  constexpr const char* rule() const { return rule_ ? rule_ : ""; }

 private:
  constexpr explicit Support(const char* rule) : rule_(rule) {}
  const char* rule_;
};

// A pass bound to its buffers. Copyable; keeps the plan's resources alive.
class Bound {
 public:
  Bound() = default;
  explicit Bound(std::function<void(Stream)> launch) : launch_(std::move(launch)) {}
  // Enqueues on `stream` (a cudaStream_t; nullptr and synchronous on the CPU). Throws Error on a failed
  // launch.
  void launch(Stream stream) const { launch_(stream); }

 private:
  std::function<void(Stream)> launch_;
};

// A pass planned for a problem. Its bindings share what it owns (block counters too) and the workspace that
// they are given: their launches must not overlap.
template <class Args>
class Plan {
 public:
  using Bind = std::function<Bound(const Args&, void* workspace)>;
  Plan(size_t workspace_bytes, Bind bind) : workspace_bytes_(workspace_bytes), bind_(std::move(bind)) {}
  // Bytes of scratch memory on the plan's device, 256-byte aligned; contents need not survive between
  // launches and must not be assumed zero.
  size_t workspace_bytes() const { return workspace_bytes_; }
  Bound bind(const Args& args, void* workspace) const { return bind_(args, workspace); }

 private:
  size_t workspace_bytes_;
  Bind bind_;
};

// Throws Error unless every pointer of an Args aggregate is null or 16-byte aligned.
void require_aligned_args(const void* args, size_t bytes);

// The usual plan: `launch(args, workspace, stream)` with everything it needs captured by value. Tensors must
// be 16-byte aligned, which bind checks.
template <class Args, class Launch>
Plan<Args> make_plan(size_t workspace_bytes, Launch launch) {
  return Plan<Args>(workspace_bytes, [launch](const Args& args, void* workspace) {
    require_aligned_args(&args, sizeof args);
    return Bound([launch, args, workspace](Stream stream) { launch(args, workspace, stream); });
  });
}

// For implementations without configs: throws Error where one was given.
void require_no_config(std::string_view config);

// One way to run a pass. Pass is the op's tag struct (Conv2dFwd, ...).
template <class Pass>
struct Impl {
  using Problem = typename Pass::Problem;
  using Args = typename Pass::Args;
  const char* name;  // the technique: "naive", "smem_tile", "cudnn"
  Support (*supports)(const Problem&, const Device&);
  // config: what follows "name:" in a choice, "" for the implementation's own heuristic. Throws Error for a
  // config it does not know. Call it through plan_of() (impl_choice.h), which names the problem in errors.
  Plan<Args> (*plan)(const Problem&, const Device&, std::string_view config);
  bool peer = false;  // a vendor's library: chosen only by name
  // The configs that are worth trying on a problem, for `kiln tune`; null where there is nothing to choose.
  std::vector<std::string> (*configs)(const Problem&, const Device&) = nullptr;
  // Where it supports a problem that another does faster: whether pick() takes it unasked; null for always.
  bool (*preferred)(const Problem&, const Device&) = nullptr;
  // Of a problem with an output that spares the next step work (conv2d's stats): whether the two steps are
  // thought to gain by it; null for never.
  bool (*gains)(const Problem&, const Device&) = nullptr;
};

// Best to naive; peers last.
template <class Pass>
using Table = std::span<const Impl<Pass>* const>;

// The tables of a pass, one line an implementation, best first, peers last. An implementation is an object
// `const Impl<Pass> name` that its own file defines with `extern`; adding one is that file and one line here:
//
//   KILN_TABLES(ReluFwd,
//               (relu_fwd_cpu_fast,   // CPU
//                relu_fwd_cpu_naive),
//               (relu_fwd_vectorized, // CUDA
//                relu_fwd_naive
//                KILN_CUDNN(relu_fwd_cudnn)))
#define KILN_TABLES(Pass, cpu, cuda)                                                          \
  extern const Impl<Pass> KILN_UNPAREN_ cpu;                                                  \
  KILN_CUDA_ONLY_(extern const Impl<Pass> KILN_UNPAREN_ cuda;)                                \
  Table<Pass> Pass::impls(DeviceKind kind) {                                                  \
    static constexpr auto kCpu = detail::table_of<Pass>(KILN_UNPAREN_ cpu);                   \
    KILN_CUDA_ONLY_(static constexpr auto kCuda = detail::table_of<Pass>(KILN_UNPAREN_ cuda); \
                    if (kind == DeviceKind::kCuda) return kCuda;)                             \
    return kind == DeviceKind::kCpu ? Table<Pass>(kCpu) : Table<Pass>();                      \
  }

#define KILN_UNPAREN_(...) __VA_ARGS__
#ifdef KILN_WITH_CUDA
#define KILN_CUDA_ONLY_(...) __VA_ARGS__
#else
#define KILN_CUDA_ONLY_(...)
#endif
#ifdef KILN_WITH_CUDNN
#define KILN_CUDNN(...) , __VA_ARGS__
#else
#define KILN_CUDNN(...)
#endif
#ifdef KILN_WITH_CUBLAS
#define KILN_CUBLAS(...) , __VA_ARGS__
#else
#define KILN_CUBLAS(...)
#endif

namespace detail {
template <class Pass, class... I>
constexpr std::array<const Impl<Pass>*, sizeof...(I)> table_of(const I&... impls) {
  return {&impls...};
}
}  // namespace detail

}  // namespace kiln
