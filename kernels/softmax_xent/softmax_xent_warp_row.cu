// softmax_xent fwd and fwd_bwd, a warp a row: see softmax_xent_group_row.cuh. For up to 1024 classes; beyond,
// a warp is too slow for its row.
#include "kernels/softmax_xent/softmax_xent_group_row.cuh"

namespace kiln {
namespace {

Support supports(const SoftmaxXentProblem& p, const Device&) {
  return Support::require(p.c <= 1024, "warp_row takes at most 1024 classes");
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_warp_row = {
    .name = "warp_row", .supports = supports, .plan = plan_group_row<SoftmaxXentFwd, 32>};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_warp_row = {
    .name = "warp_row", .supports = supports, .plan = plan_group_row<SoftmaxXentFwdBwd, 32>};

}  // namespace kiln
