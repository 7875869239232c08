// linear fwd: y[n,k] = bias[k] + sum_c x[n,c] * w[k,c], on tensor cores.
//
// Rows n, columns k, sum over c; both operands lie along the sum. See linear_mma_sync.cuh for tiles, stages
// and the parts of the sum. Config "mma_sync:64x64": the tile. Needs bf16 and compute capability 8.0; any
// size, fastest where c is a multiple of 8; y is bf16 or fp32. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/linear/linear_mma_sync.cuh"

namespace kiln {
namespace {

LinearMmaOperands operands(const LinearFwd::Args& a) {
  return {.a = a.x, .b = a.w, .bias = a.bias, .out = a.y, .row_sums = nullptr};
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_mma_sync = {
    .name = "mma_sync",
    .supports = mma_sync_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          const LinearMmaShape g = {.rows = p.n,
                                    .columns = p.k,
                                    .terms = p.c,
                                    .lda = p.c,
                                    .ldb = p.c,
                                    .part_terms = p.c,
                                    .splits = 1,
                                    .f32_out = p.f32_out,
                                    .partial_stride = 0};
          return mma_sync_plan<false, false>(g, device, config, operands);
        },
    .configs = mma_sync_configs};

}  // namespace kiln
