// linear wgrad: dw[k,c] = sum_n dy[n,k] * x[n,c], dbias[k] = sum_n dy[n,k], on tensor cores.
//
// Rows k, columns c, sum over n; both operands lie across the sum. dbias is a product of dy by ones, in the
// blocks of the first columns. See linear_mma_sync.cuh for tiles, stages and the parts of the sum. Config
// "mma_sync:64x64": the tile. Needs bf16 and compute capability 8.0; any size, fastest where c and k are
// multiples of 8. Deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_mma_sync.cuh"

namespace kiln {
namespace {

LinearMmaOperands operands(const LinearWgrad::Args& a) {
  return {.a = a.dy, .b = a.x, .bias = nullptr, .out = a.dw, .row_sums = a.dbias};
}

}  // namespace

extern const Impl<LinearWgrad> linear_wgrad_mma_sync = {
    .name = "mma_sync",
    .supports = mma_sync_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          const LinearMmaShape g = {.rows = p.k,
                                    .columns = p.c,
                                    .terms = p.n,
                                    .lda = p.k,
                                    .ldb = p.c,
                                    .part_terms = p.n,
                                    .splits = 1,
                                    .f32_out = true,
                                    .partial_stride = 0};
          return mma_sync_plan<true, true>(g, device, config, operands);
        },
    .configs = mma_sync_configs};

}  // namespace kiln
