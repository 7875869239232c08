#include "bench/layer_rows.h"

#ifdef KILN_WITH_CUDNN
#include <cstdio>

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
std::vector<std::string> best_plans(const PassInfo& pass, const AnyProblem& problem, const Device& device) {
  std::fprintf(stderr, "trying cuDNN's plans for %s %s\n", pass.id().c_str(), problem.text.c_str());
  std::vector<std::string> plans;
  for (const CudnnPlanInfo& plan : conv2d_cudnn_ranked_plans(
           pass.pass, *static_cast<const Conv2dProblem*>(problem.value.get()), device)) {
    if (plans.size() < kPlans) plans.push_back(plan.config);
  }
  return plans;
}
#endif

}  // namespace

std::vector<std::string> peer_choices(const PassInfo& pass, const AnyProblem& problem, const Device& device,
                                      const std::string& peer) {
  std::vector<std::string> choices = {peer + ":default"};
#ifdef KILN_WITH_CUDNN
  try {
#ifdef KILN_OP_CONV2D
    if (peer == "cudnn" && pass.op == "conv2d") {
      for (const std::string& plan : best_plans(pass, problem, device)) choices.push_back(peer + ":" + plan);
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
  return choices;
}

}  // namespace kiln
