// conv2d fwd, dgrad and wgrad by cuDNN's graph API: the peer of kiln's kernels.
//
// NHWC and KRSC strides, fp32 compute type. The engine comes from cuDNN's heuristics; the config says which
// (conv2d_cudnn.h). wgrad of bf16 writes an fp32 filter gradient by cuDNN's fusion engines, or a bf16 one in
// the workspace that a second launch widens (docs/peers.md). Deterministic or not as the engine is
// (CudnnPlanInfo::notes).
#include "kernels/conv2d/conv2d_cudnn.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <exception>
#include <limits>
#include <memory>
#include <thread>

#include "kernels/common/error.h"
#include "kernels/common/peer_trial.h"
#include "kernels/conv2d/conv2d_graph_cudnn.h"

namespace kiln {
namespace {

template <class Pass>
struct Traits;

template <>
struct Traits<Conv2dFwd> {
  static constexpr CudnnConvPass kPass = CudnnConvPass::kFwd;
  static CudnnConvOperands operands(const Conv2dFwd::Args& a) {
    return {const_cast<void*>(a.x), const_cast<void*>(a.w), a.y};
  }
};
template <>
struct Traits<Conv2dDgrad> {
  static constexpr CudnnConvPass kPass = CudnnConvPass::kDgrad;
  static CudnnConvOperands operands(const Conv2dDgrad::Args& a) {
    return {a.dx, const_cast<void*>(a.w), const_cast<void*>(a.dy)};
  }
};
template <>
struct Traits<Conv2dWgrad> {
  static constexpr CudnnConvPass kPass = CudnnConvPass::kWgrad;
  static CudnnConvOperands operands(const Conv2dWgrad::Args& a) {
    return {const_cast<void*>(a.x), a.dw, const_cast<void*>(a.dy)};
  }
};

template <class Pass>
Support supports(const Conv2dProblem& p, const Device& device) {
  if (!device.is_cuda()) return Support::no("the cuDNN peer needs a CUDA device");
  if (p.x_channels() != p.c) return Support::no("the cuDNN peer takes no channel stride");
  if (p.bias && Traits<Pass>::kPass != CudnnConvPass::kDgrad)
    return Support::no("the cuDNN peer takes no bias");
  if (p.has_epilogue() || p.dact != ActKind::kNone) {
    return Support::no("the cuDNN peer takes no scale, res, activation, max2, stats, drelu or drelu6");
  }
  if (p.dtype != DType::kBF16) return Support::yes();
  if (Traits<Pass>::kPass == CudnnConvPass::kDgrad && p.accumulate) {
    return Support::no("the cuDNN peer rounds to bf16 before it adds dx");
  }
  // Found by the tests with cuDNN 9.19 on an H100: such filter gradients are wrong by more than rounding.
  const auto taken = [](int channels) { return channels % 8 == 0 || channels % 2 == 1; };
  return Support::require(
      Traits<Pass>::kPass != CudnnConvPass::kWgrad || (taken(p.c) && taken(p.k)),
      "cuDNN's bf16 filter gradient is wrong for even channels that are no multiple of 8");
}

template <class Pass>
[[noreturn]] void fail(const Conv2dProblem& p, const std::string& rule, ErrorKind kind) {
  throw Error(
      std::string(Pass::kOp) + "." + Pass::kPass + " cudnn " + p.str() + " " + name_of(p.dtype) + ": " + rule,
      kind);
}

template <class Pass>
Plan<typename Pass::Args> as_plan(std::shared_ptr<const CudnnConvPlan> plan) {
  using Args = typename Pass::Args;
  return Plan<Args>(plan->workspace_bytes(), [plan](const Args& args, void* workspace) {
    require_aligned_args(&args, sizeof args);
    return plan->bind(Traits<Pass>::operands(args), workspace, plan);
  });
}

// All plans of the list, made by several threads, each with a handle of its own; null where cuDNN makes none.
// Nothing is on the GPU meanwhile, and nothing is left to build when this returns.
template <class Pass>
std::vector<std::shared_ptr<const CudnnConvPlan>> make_all(const Conv2dProblem& p, size_t count) {
  constexpr size_t kMostThreads = 32;  // each has a handle, which takes memory on the GPU
  std::vector<std::shared_ptr<const CudnnConvPlan>> plans(count);
  const size_t workers =
      std::min(std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kMostThreads), count);
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> failures(workers);
  for (size_t worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&, worker] {
      try {
        check_cuda(cudaSetDevice(device), "cudaSetDevice");
        const BorrowedCudnnHandle handle;
        CudnnConv conv(Traits<Pass>::kPass, p, handle.get());
        for (size_t k = next++; k < std::min(count, conv.size()); k = next++) plans[k] = conv.make(k);
      } catch (...) {
        failures[worker] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  return plans;
}

constexpr double kSlow = 3;  // times the best: nobody asks for such a plan again

// Tries every plan once, one after the other; visit(k, plan, microseconds) for those that run.
template <class Pass, class Visit>
void try_all(CudnnConv& conv, const Conv2dProblem& p, Visit visit) {
  const auto plans = make_all<Pass>(p, conv.size());
  const TrialTurn turn;
  const TrialStream stream;
  const TrialArgs<Pass> scratch(p, stream);
  double best_us = std::numeric_limits<double>::infinity();
  for (size_t k = 0; k < plans.size(); ++k) {
    if (!plans[k]) continue;
    double us = 0;
    try {
      const DeviceBuffer workspace(plans[k]->workspace_bytes());
      us = stream.time_us(as_plan<Pass>(plans[k]).bind(scratch.args(), workspace.data()), kSlow * best_us);
    } catch (const Error&) {
      stream.wait();  // throws where the failure was more than a refusal
      continue;
    }
    best_us = std::min(best_us, us);
    visit(k, plans[k], us);
  }
}

template <class Pass>
std::shared_ptr<const CudnnConvPlan> best_plan(CudnnConv& conv, const Conv2dProblem& p) {
  std::shared_ptr<const CudnnConvPlan> best;
  bool best_exact = false;
  double best_us = std::numeric_limits<double>::infinity();
  try_all<Pass>(conv, p, [&](size_t k, const std::shared_ptr<const CudnnConvPlan>& plan, double us) {
    const bool exact = conv.info(k).exact;
    if (best && (best_exact != exact ? best_exact : best_us <= us)) return;
    best = plan;
    best_exact = exact;
    best_us = us;
  });
  return best;
}

// "plan<k>" to k.
template <class Pass>
size_t plan_index(const Conv2dProblem& p, std::string_view config, size_t plans) {
  constexpr std::string_view kPrefix = "plan";
  size_t k = 0;
  if (config.starts_with(kPrefix)) {
    const char* const first = config.data() + kPrefix.size();
    const char* const last = config.data() + config.size();
    const auto [end, error] = std::from_chars(first, last, k);
    if (first != last && end == last && error == std::errc() && k < plans) return k;
  }
  fail<Pass>(p,
             "unknown config '" + std::string(config) + "'; known: default, best, plan0 ... plan" +
                 std::to_string(plans ? plans - 1 : 0),
             ErrorKind::kUsage);
}

template <class Pass>
Plan<typename Pass::Args> plan(const Conv2dProblem& p, const Device&, std::string_view config) {
  const BorrowedCudnnHandle handle;
  CudnnConv conv(Traits<Pass>::kPass, p, handle.get());
  std::shared_ptr<const CudnnConvPlan> found;
  if (config.empty() || config == "default") {
    for (size_t k = 0; k < conv.size() && !found; ++k) found = conv.make(k);
  } else if (config == "best") {
    found = best_plan<Pass>(conv, p);
  } else {
    const size_t k = plan_index<Pass>(p, config, conv.size());
    found = conv.make(k);
    if (!found) fail<Pass>(p, "cuDNN does not make " + conv.info(k).config, ErrorKind::kFailure);
  }
  if (!found)
    fail<Pass>(p, "cuDNN has no engine for it that needs at most 1 GiB of workspace", ErrorKind::kFailure);
  return as_plan<Pass>(found);
}

template <class Pass>
void require_supported(const Conv2dProblem& p, const Device& device) {
  const Support support = supports<Pass>(p, device);
  if (!support) fail<Pass>(p, support.rule(), ErrorKind::kUsage);
}

template <class Pass>
std::vector<CudnnPlanInfo> list_plans(const Conv2dProblem& p, const Device& device) {
  require_supported<Pass>(p, device);
  const BorrowedCudnnHandle handle;
  const CudnnConv conv(Traits<Pass>::kPass, p, handle.get());
  std::vector<CudnnPlanInfo> plans;
  for (size_t k = 0; k < conv.size(); ++k) plans.push_back(conv.info(k));
  return plans;
}

template <class Pass>
std::vector<CudnnPlanInfo> rank_plans(const Conv2dProblem& p, const Device& device) {
  require_supported<Pass>(p, device);
  const BorrowedCudnnHandle handle;
  CudnnConv conv(Traits<Pass>::kPass, p, handle.get());
  std::vector<CudnnPlanInfo> plans;
  try_all<Pass>(conv, p, [&](size_t k, const std::shared_ptr<const CudnnConvPlan>& made, double us) {
    plans.push_back(conv.info(k));
    plans.back().workspace_bytes = made->workspace_bytes();
    plans.back().us = us;
  });
  std::stable_sort(plans.begin(), plans.end(),
                   [](const CudnnPlanInfo& a, const CudnnPlanInfo& b) { return a.us < b.us; });
  std::erase_if(plans, [best = plans.empty() ? 0 : plans[0].us](const CudnnPlanInfo& plan) {
    return plan.us > kSlow * best;
  });
  return plans;
}

// Calls use.operator()<Pass>() for the pass of that name.
template <class Use>
auto with_pass(std::string_view pass, Use use) {
  if (pass == Conv2dFwd::kPass) return use.template operator()<Conv2dFwd>();
  if (pass == Conv2dDgrad::kPass) return use.template operator()<Conv2dDgrad>();
  if (pass == Conv2dWgrad::kPass) return use.template operator()<Conv2dWgrad>();
  fail_usage(unknown_name_message("pass of conv2d", pass,
                                  {Conv2dFwd::kPass, Conv2dDgrad::kPass, Conv2dWgrad::kPass}));
}

}  // namespace

std::vector<CudnnPlanInfo> conv2d_cudnn_plans(std::string_view pass, const Conv2dProblem& problem,
                                              const Device& device) {
  return with_pass(pass, [&]<class Pass>() { return list_plans<Pass>(problem, device); });
}

std::vector<CudnnPlanInfo> conv2d_cudnn_ranked_plans(std::string_view pass, const Conv2dProblem& problem,
                                                     const Device& device) {
  return with_pass(pass, [&]<class Pass>() { return rank_plans<Pass>(problem, device); });
}

extern const Impl<Conv2dFwd> conv2d_fwd_cudnn = {
    .name = "cudnn", .supports = supports<Conv2dFwd>, .plan = plan<Conv2dFwd>, .peer = true};
extern const Impl<Conv2dDgrad> conv2d_dgrad_cudnn = {
    .name = "cudnn", .supports = supports<Conv2dDgrad>, .plan = plan<Conv2dDgrad>, .peer = true};
extern const Impl<Conv2dWgrad> conv2d_wgrad_cudnn = {
    .name = "cudnn", .supports = supports<Conv2dWgrad>, .plan = plan<Conv2dWgrad>, .peer = true};

}  // namespace kiln
