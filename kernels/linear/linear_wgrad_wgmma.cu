// linear wgrad: dw[k,c] = sum_n dy[n,k] * x[n,c], dbias[k] = sum_n dy[n,k], on Hopper's tensor cores.
//
// Rows k, columns c, sum over n; both operands lie across the sum. dbias is a product of dy's tiles by ones,
// in the blocks of the first columns. See linear_wgmma.cuh for tiles, warpgroups and the ring; where tiles
// are too few for the chip, or the sum is longer than tensor cores should add in one go, it is cut into
// parts, which a second launch adds in order. Config "wgmma:128x256_split2": rows x columns of a tile, parts
// of the sum. Needs compute capability 9.0, bf16, c and k in multiples of 8. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_wgmma_plan.cuh"

namespace kiln {
namespace {

LinearProduct product(const LinearProblem& p) {
  return {.rows = p.k, .columns = p.c, .terms = p.n, .f32_out = true};
}
LinearOperands operands(const LinearWgrad::Args& a) {
  return {.a = a.dy, .b = a.x, .bias = nullptr, .out = a.dw, .row_sums = a.dbias};
}

}  // namespace

extern const Impl<LinearWgrad> linear_wgrad_wgmma = {
    .name = "wgmma",
    .supports = linear_wgmma_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          return linear_wgmma_plan(linear_tiles<true, true>(), product(p), device, config, operands);
        },
    .configs =
        [](const LinearProblem& p, const Device& device) {
          return linear_wgmma_configs(linear_tiles<true, true>(), product(p), device);
        },
    .preferred = linear_wgmma_preferred};

}  // namespace kiln
