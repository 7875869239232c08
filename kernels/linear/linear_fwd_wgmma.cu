// linear fwd: y[n,k] = bias[k] + sum_c x[n,c] * w[k,c], on Hopper's tensor cores.
//
// Rows n, columns k, sum over c; both operands lie along the sum. See linear_wgmma.cuh for tiles, warpgroups
// and the ring; where tiles are too few for the chip the sum is cut into parts, which a second launch adds in
// order with the bias. Config "wgmma:128x256_split2": rows x columns of a tile, parts of the sum. Needs
// compute capability 9.0, bf16, c and k in multiples of 8; y is bf16 or fp32. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_wgmma_plan.cuh"

namespace kiln {
namespace {

LinearProduct product(const LinearProblem& p) {
  return {.rows = p.n, .columns = p.k, .terms = p.c, .f32_out = p.f32_out};
}
LinearOperands operands(const LinearFwd::Args& a) {
  return {.a = a.x, .b = a.w, .bias = a.bias, .out = a.y, .row_sums = nullptr};
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_wgmma = {
    .name = "wgmma",
    .supports = linear_wgmma_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          return linear_wgmma_plan(linear_tiles<false, false>(), product(p), device, config, operands);
        },
    .configs =
        [](const LinearProblem& p, const Device& device) {
          return linear_wgmma_configs(linear_tiles<false, false>(), product(p), device);
        },
    .preferred = linear_wgmma_preferred};

}  // namespace kiln
