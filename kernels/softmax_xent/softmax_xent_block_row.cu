// softmax_xent fwd and fwd_bwd, a block a row, for any number of classes: see softmax_xent_group_row.cuh.
#include "kernels/softmax_xent/softmax_xent_group_row.cuh"

namespace kiln {
namespace {

Support supports(const SoftmaxXentProblem&, const Device&) { return Support::yes(); }

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_block_row = {
    .name = "block_row", .supports = supports, .plan = plan_group_row<SoftmaxXentFwd, kGroupRowThreads>};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_block_row = {
    .name = "block_row", .supports = supports, .plan = plan_group_row<SoftmaxXentFwdBwd, kGroupRowThreads>};

}  // namespace kiln
