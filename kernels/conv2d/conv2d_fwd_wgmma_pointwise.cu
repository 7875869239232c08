// conv2d fwd with a 1x1 filter and stride 1: y[n,p,q,k] = bias[k] + sum_c x[n,p,q,c] * w[k,c], on Hopper's
// tensor cores at the rate of memory, and with the epilogue of conv2d_epilogue.cuh.
//
// A plain product of pixels x channels and the filter: see conv2d_pointwise.cuh for tiles, warpgroups and
// the ring. The filter's tile is a box of w as it lies, [K][C], K-major. One block a multiprocessor, up to
// 227 KiB of shared memory. Config "pointwise:96x64": columns of a tile x channels of a slice, the filter
// stays in shared memory; "_stream": it comes with each tile; "_split2": two blocks share a tile's channels.
// Needs compute capability 9.0, bf16, channels in multiples of 8. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_pointwise_plan.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support sums = wgmma_sums_supports(p); !sums) return sums;
  const Support gather = wgmma_fused_gather_supports(p, device);
  return gather ? pointwise_supports(p) : gather;
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_pointwise = {
    .name = "pointwise",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return wgmma_plan(pointwise_candidates<false>(), wgmma_fwd_gather(p, device), config,
                            wgmma_fwd_buffers);
        },
    .configs = [](const Conv2dProblem& p,
                  const Device& device) { return pointwise_configs<false>(wgmma_fwd_gather(p, device)); },
    .preferred = [](const Conv2dProblem& p,
                    const Device& device) { return pointwise_preferred<false>(wgmma_fwd_gather(p, device)); },
    .gains = [](const Conv2dProblem& p, const Device&) { return wgmma_sums_gain(p); }};

}  // namespace kiln
