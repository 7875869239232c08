// linear dgrad: dx[n,c] = sum_k dy[n,k] * w[k,c], on tensor cores.
//
// Rows n, columns c, sum over k; dy lies along the sum, w across it. See linear_mma_sync.cuh for tiles,
// stages and the parts of the sum. Config "mma_sync:64x64": the tile. Needs bf16 and compute capability 8.0;
// any size, fastest where c and k are multiples of 8; dx is bf16 or fp32. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_mma_sync.cuh"

namespace kiln {
namespace {

LinearMmaOperands operands(const LinearDgrad::Args& a) {
  return {.a = a.dy, .b = a.w, .bias = nullptr, .out = a.dx, .row_sums = nullptr};
}

}  // namespace

extern const Impl<LinearDgrad> linear_dgrad_mma_sync = {
    .name = "mma_sync",
    .supports = mma_sync_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          const LinearMmaShape g = {.rows = p.n,
                                    .columns = p.c,
                                    .terms = p.k,
                                    .lda = p.k,
                                    .ldb = p.c,
                                    .part_terms = p.k,
                                    .splits = 1,
                                    .f32_out = p.f32_out,
                                    .partial_stride = 0};
          return mma_sync_plan<false, true>(g, device, config, operands);
        },
    .configs = mma_sync_configs};

}  // namespace kiln
