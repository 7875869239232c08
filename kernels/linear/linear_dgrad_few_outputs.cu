// linear dgrad with few outputs: dx[n,c] = sum_k dy[n,k] * w[k,c].
//
// Writing dx is all the work: the sum is one to eight k16 steps. A warp owns 16 or 32 rows x 64 columns; w
// lies across the sum, so that a lane has 16 neighbouring columns of its rows; see linear_few_outputs.cuh.
// The eight warps of a block stand below each other and share the columns of w in L1. No shared memory.
// Config "few_outputs:r32": rows of a warp. Needs bf16, c a multiple of 8, k at most 128; dx is bf16 or fp32.
// Deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/linear/linear_few_outputs.cuh"

namespace kiln {
namespace {

template <int kMT_>
struct Config {
  static constexpr int kMT = kMT_, kWarps = 8, kThreads = kWarps * 32;
  static constexpr int kWarpRows = kMT * 16, kRows = kWarps * kWarpRows, kColumns = 64;
};

template <class C>
__global__ __launch_bounds__(C::kThreads) void linear_dgrad_few_outputs_kernel(
    const bf16* __restrict__ dy,  // [N,K]
    const bf16* __restrict__ w,   // [K,C]
    void* __restrict__ dx,        // [N,C] bf16, or fp32 with f32_out
    int n, int c, int k, bool f32_out) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int column_tiles = (c + C::kColumns - 1) / C::kColumns;
  const int first_column = static_cast<int>(blockIdx.x % column_tiles) * C::kColumns;
  const int first_row =
      static_cast<int>(blockIdx.x / column_tiles) * C::kRows + threadIdx.x / 32 * C::kWarpRows;
  float acc[C::kMT][8][4] = {};
  for (int l = 0; l < k; l += 16) {
    const int column = first_column + g * 8;
    AcrossRows<8> b;
    b.load(w + static_cast<size_t>(l) * c + column, c, k - l, column < c);
#pragma unroll
    for (int m = 0; m < C::kMT; ++m) {
      const int row0 = first_row + m * 16;
      uint32_t a[4];
      load_scattered(a, n - row0, k - l, [&](int row, int depth) {
        return dy + static_cast<size_t>(row0 + row) * k + l + depth;
      });
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_bf16(acc[m][j], a, b.low(j), b.high(j));
    }
  }
  // Product j's column 2t + e is column 8 * (2t + e) + j of the tile.
#pragma unroll
  for (int m = 0; m < C::kMT * 2; ++m) {
    const int row = first_row + m * 8 + g;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = first_column + (2 * t + e) * 8;
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = acc[m / 2][j][m % 2 * 2 + e];
      if (row < n && column < c) store_run(dx, f32_out, static_cast<size_t>(row) * c + column, v);
    }
  }
}

template <int kMT>
Plan<LinearDgrad::Args> plan(const LinearProblem& p) {
  using C = Config<kMT>;
  const unsigned blocks = grid_for(1LL * ceil_div(p.n, C::kRows) * ceil_div(p.c, C::kColumns), 1);
  return make_plan<LinearDgrad::Args>(0, [p, blocks](const LinearDgrad::Args& a, void*, Stream stream) {
    linear_dgrad_few_outputs_kernel<C><<<blocks, C::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const bf16*>(a.dy), static_cast<const bf16*>(a.w), a.dx, p.n, p.c, p.k, p.f32_out);
    check_launch("linear_dgrad_few_outputs_kernel");
  });
}

constexpr FewOutputsVariant<LinearDgrad> kVariants[] = {{"r16", plan<1>}, {"r32", plan<2>}};

}  // namespace

extern const Impl<LinearDgrad> linear_dgrad_few_outputs = {
    .name = "few_outputs",
    .supports = few_outputs_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          const long long blocks = 1LL * ceil_div(p.n, Config<1>::kRows) * ceil_div(p.c, Config<1>::kColumns);
          return choose_variant(kVariants, config, blocks > 4LL * device.multiprocessors ? "r32" : "r16")
              .plan(p);
        },
    .configs = [](const LinearProblem&, const Device&) { return variant_names(kVariants); },
    .preferred = few_outputs_preferred};

}  // namespace kiln
