#include "kernels/common/registry.h"

#include "kernels/common/registry_detail.h"

#ifdef KILN_OP_ACTIVATION
#include "kernels/activation/activation.h"
#endif
#ifdef KILN_OP_AUGMENT
#include "kernels/augment/augment.h"
#endif
#ifdef KILN_OP_BATCHNORM
#include "kernels/batchnorm/batchnorm.h"
#endif
#ifdef KILN_OP_CONV2D
#include "kernels/conv2d/conv2d.h"
#endif
#ifdef KILN_OP_DEPTHWISE_CONV2D
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"
#endif
#ifdef KILN_OP_LINEAR
#include "kernels/linear/linear.h"
#endif
#ifdef KILN_OP_OPTIMIZER
#include "kernels/optimizer/optimizer.h"
#endif
#ifdef KILN_OP_POOL2D
#include "kernels/pool2d/pool2d.h"
#endif
#ifdef KILN_OP_SOFTMAX_XENT
#include "kernels/softmax_xent/softmax_xent.h"
#endif

namespace kiln {
namespace {

template <class... Pass>
void add(std::vector<PassInfo>& list) {
  (list.push_back(detail::make_pass<Pass>()), ...);
}

std::vector<PassInfo> make_all() {
  std::vector<PassInfo> list;
#ifdef KILN_OP_CONV2D
  add<Conv2dFwd, Conv2dDgrad, Conv2dWgrad>(list);
#endif
#ifdef KILN_OP_DEPTHWISE_CONV2D
  add<DepthwiseConv2dFwd, DepthwiseConv2dDgrad, DepthwiseConv2dWgrad>(list);
#endif
#ifdef KILN_OP_LINEAR
  add<LinearFwd, LinearDgrad, LinearWgrad>(list);
#endif
#ifdef KILN_OP_BATCHNORM
  add<BatchnormFwdTrain, BatchnormFwdGiven, BatchnormFwdApply, BatchnormFwdInfer, BatchnormBwd>(list);
#endif
#ifdef KILN_OP_POOL2D
  add<MaxPool2dFwd, MaxPool2dBwd, AvgPool2dFwd, AvgPool2dBwd>(list);
  add<GlobalMaxPoolFwd, GlobalMaxPoolBwd, GlobalAvgPoolFwd, GlobalAvgPoolBwd>(list);
#endif
#ifdef KILN_OP_ACTIVATION
  add<ReluFwd, ReluBwd, Relu6Fwd, Relu6Bwd, GeluFwd, GeluBwd, SiluFwd, SiluBwd, AddFwd, AddBwd>(list);
#endif
#ifdef KILN_OP_SOFTMAX_XENT
  add<SoftmaxXentFwd, SoftmaxXentFwdBwd>(list);
#endif
#ifdef KILN_OP_OPTIMIZER
  add<SgdStep, AdamwStep, GradNorm>(list);
#endif
#ifdef KILN_OP_AUGMENT
  add<AugmentFwd>(list);
#endif
  return list;
}

}  // namespace

const std::vector<PassInfo>& all_passes() {
  static const std::vector<PassInfo> list = make_all();
  return list;
}

const PassInfo* built_pass(std::string_view id) {
  for (const PassInfo& info : all_passes()) {
    if (info.id() == id) return &info;
  }
  return nullptr;
}

const PassInfo& find_pass(std::string_view id) {
  if (const PassInfo* pass = built_pass(id)) return *pass;
  std::vector<std::string> ids;
  for (const PassInfo& info : all_passes()) ids.push_back(info.id());
  fail_usage(unknown_name_message("op.pass", id, ids));
}

}  // namespace kiln
