// conv2d dgrad with a 1x1 filter, stride 1 and many channels of dy: dx[n,h,w,c] = sum_k dy[n,h,w,k] * w[k,c],
// on Hopper's tensor cores.
//
// As conv2d_fwd_wgmma_deep.cu with dy as the source; configs alike. The filter needs no transposed copy: a
// box of [K][C] is k rows of c, an MN-major B tile. One block a multiprocessor, 209 or 225 KiB of shared
// memory. Needs compute capability 9.0, bf16, channels in multiples of 8 and packed. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_deep_plan.cuh"

namespace kiln {
namespace {

using Tiles = DeepTiles<true, DeepConfig<2, 2, 160, 4>, DeepConfig<2, 1, 128, 7>>;

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support gate = conv2d_takes_no_gate(p); !gate) return gate;
  if (p.accumulate) return Support::no("it writes dx and does not add to it");
  const Support gather = wgmma_dgrad_supports(p, device);
  return gather ? deep_supports(p) : gather;
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_deep = {
    .name = "deep",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(Tiles::candidates(), wgmma_dgrad_gather(p, device), config, wgmma_dgrad_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(Tiles::candidates(), wgmma_dgrad_gather(p, device));
        },
    .preferred = [](const Conv2dProblem& p,
                    const Device& device) { return Tiles::preferred(wgmma_dgrad_gather(p, device)); }};

}  // namespace kiln
