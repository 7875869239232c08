#include "bench/layer_rows.h"

#ifdef KILN_WITH_CUDNN
#include <cstdio>

#include "kernels/common/cudnn/version.h"
#include "kernels/common/impl_choice.h"
#ifdef KILN_OP_CONV2D
#include "kernels/conv2d/conv2d_cudnn.h"
#endif
#endif

#include "kernels/common/error.h"

namespace kiln {
namespace {

#if defined(KILN_WITH_CUDNN) && defined(KILN_OP_CONV2D)
constexpr size_t kPlans = 3;

// The fastest of all plans, each tried once.
std::vector<std::string> best_plans(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                                    PlanRanking& ranking) {
  const auto& p = *static_cast<const Conv2dProblem*>(problem.value.get());
  const std::string key = "cudnn-" + cudnn_version() + "/" + device.name + "/" +
                          tuning_key(pass.op, pass.pass, problem.text, problem.dtype);
  if (!ranking.find(key)) {
    std::fprintf(stderr, "trying cuDNN's plans for %s %s %s\n", pass.id().c_str(), problem.text.c_str(),
                 name_of(problem.dtype));
    std::vector<RankedPlan> ranked;
    for (const CudnnPlanInfo& plan : conv2d_cudnn_ranked_plans(pass.pass, p, device)) {
      ranked.push_back({plan.engine, plan.notes, plan.us});
    }
    ranking.set(key, std::move(ranked));
  }
  std::vector<std::string> plans;
  const std::vector<CudnnPlanInfo> listed = conv2d_cudnn_plans(pass.pass, p, device);
  for (const RankedPlan& ranked : *ranking.find(key)) {
    for (const CudnnPlanInfo& plan : listed) {
      if (plans.size() < kPlans && plan.engine == ranked.engine && plan.notes == ranked.notes) {
        plans.push_back(plan.config);
        break;
      }
    }
  }
  return plans;
}
#endif

}  // namespace

std::vector<std::string> peer_choices(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                                      const std::string& peer, PlanRanking& ranking) {
  std::vector<std::string> choices = {peer + ":default"};
#ifdef KILN_WITH_CUDNN
  try {
#ifdef KILN_OP_CONV2D
    if (peer == "cudnn" && pass.op == "conv2d") {
      for (const std::string& plan : best_plans(pass, problem, device, ranking))
        choices.push_back(peer + ":" + plan);
    }
#endif
    if (peer == "cudnn" && (pass.id() == "batchnorm.fwd_train" || pass.id() == "batchnorm.bwd")) {
      choices.push_back(peer + ":persistent");
      choices.push_back(peer + ":spatial");
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());  // its default stays
  }
#endif
  if (peer == "cublas") choices.push_back(peer + ":best");
  (void)pass;
  (void)problem;
  (void)device;
  (void)ranking;
  return choices;
}

}  // namespace kiln
