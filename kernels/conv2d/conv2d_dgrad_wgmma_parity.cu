// conv2d dgrad with strides: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] *
// w[k,r,s,c], on Hopper's tensor cores, without the products with zeros.
//
// Pixels by (h mod sh, w mod sw): each class is a gathered product over dy at unit stride with the taps of
// its parity (3x3, stride 2: one, two, two and four), and its rows are scattered to the class's pixels; all
// in one launch, see conv2d_wgmma_parity.cuh. Blocks, warps, stages and tile shapes as in conv2d_wgmma.cuh
// (153 to 217 KiB of shared memory). A config is a tile shape, for one row tile of all classes in turn, or
// with "_split" for tiles of all classes dealt to the blocks; "shared" is conv2d_wgmma_parity_shared.cuh (225
// KiB). Needs compute capability 9.0, bf16, a stride over 1 and at most 16 classes, channels in multiples of
// 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_parity_plan.cuh"

namespace kiln {

double parity_launch_clocks(const Conv2dProblem& p, const Device& device) {
  const ParityGather gather = parity_gather(p, device);
  return choose_wgmma(parity_candidates(), gather, "").cost(gather);
}

extern const Impl<Conv2dDgrad> conv2d_dgrad_wgmma_parity = {
    .name = "wgmma_parity",
    .supports = parity_supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(parity_candidates(), parity_gather(p, device), config, wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(parity_candidates(), parity_gather(p, device));
        }};

}  // namespace kiln
