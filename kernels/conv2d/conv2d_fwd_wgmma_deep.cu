// conv2d fwd with a 1x1 filter, stride 1 and many channels of x: y[n,p,q,k] = sum_c x[n,p,q,c] * w[k,c], on
// Hopper's tensor cores.
//
// A plain product of pixels x channels and the filter, whose slices stream through a ring as deep as shared
// memory: see conv2d_wgmma_deep.cuh for tiles, warpgroups and the ring. One block a multiprocessor, 217 to
// 226 KiB of shared memory. Config "deep:64x160_s8": rows x columns of a tile, stages of 64 channels. Needs
// compute capability 9.0, bf16, channels in multiples of 8. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgmma_deep_plan.cuh"

namespace kiln {
namespace {

using Tiles = DeepTiles<false, DeepConfig<1, 1, 160, 8>, DeepConfig<2, 1, 160, 6>, DeepConfig<2, 1, 128, 7>>;

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.bias) return Support::no("it adds no bias");
  const Support gather = wgmma_gather_supports(p, device);
  return gather ? deep_supports(p) : gather;
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_deep = {
    .name = "deep",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(Tiles::candidates(), wgmma_fwd_gather(p, device), config, wgmma_fwd_buffers);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          return wgmma_configs(Tiles::candidates(), wgmma_fwd_gather(p, device));
        },
    .preferred = [](const Conv2dProblem& p,
                    const Device& device) { return Tiles::preferred(wgmma_fwd_gather(p, device)); }};

}  // namespace kiln
