// linear dgrad: dx[n,c] = sum_k dy[n,k] * w[k,c], on Hopper's tensor cores.
//
// Rows n, columns c, sum over k; dy lies along the sum, w across it. See linear_wgmma.cuh for tiles,
// warpgroups and the ring; where tiles are too few for the chip the sum is cut into parts, which a second
// launch adds in order. Config "wgmma:128x256_split2": rows x columns of a tile, parts of the sum. Needs
// compute capability 9.0, bf16, c and k in multiples of 8; dx is bf16 or fp32. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_wgmma_plan.cuh"

namespace kiln {
namespace {

LinearProduct product(const LinearProblem& p) {
  return {.rows = p.n, .columns = p.c, .terms = p.k, .f32_out = p.f32_out};
}
LinearOperands operands(const LinearDgrad::Args& a) {
  return {.a = a.dy, .b = a.w, .bias = nullptr, .out = a.dx, .row_sums = nullptr};
}

}  // namespace

extern const Impl<LinearDgrad> linear_dgrad_wgmma = {
    .name = "wgmma",
    .supports = linear_wgmma_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          return linear_wgmma_plan(linear_tiles<false, true>(), product(p), device, config, operands);
        },
    .configs =
        [](const LinearProblem& p, const Device& device) {
          return linear_wgmma_configs(linear_tiles<false, true>(), product(p), device);
        },
    .preferred = linear_wgmma_preferred};

}  // namespace kiln
