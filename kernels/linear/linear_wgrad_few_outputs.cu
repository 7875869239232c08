// linear wgrad with few outputs: dw[k,c] = sum_n dy[n,k] * x[n,c], dbias[k] = sum_n dy[n,k].
//
// Reading x is all the work. A block owns 16 outputs x 16, 32 or 64 columns; its warps take steps of 16
// images in turn, each short chain is added to sums in fp32, and the warps' sums meet in shared memory (16 or
// 32 KiB), in the order of the warps. Both operands lie across the sum: x is loaded a run of columns a lane,
// dy element by element; see linear_few_outputs.cuh. dbias is the product of dy by ones, in the blocks of the
// first columns. Config "few_outputs:c32_w16": columns and warps of a block. Needs bf16, c a multiple of 8, k
// at most 128. Deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/linear/linear_few_outputs.cuh"

namespace kiln {
namespace {

template <int V_, int kWarps_>
struct Config {
  static constexpr int V = V_, kWarps = kWarps_, kThreads = kWarps * 32, kColumns = 8 * V;
  static constexpr int kBatch = V == 8 ? 2 : 4;  // steps whose loads are under way together
  static_assert(kWarps * 16 * kColumns * 4 <= 32 * 1024, "static shared memory");
};

constexpr uint32_t kOnes = 0x3f803f80;  // two of them in bf16

// The warp's sums over its images.
template <class C>
__device__ __forceinline__ void sum_images(const bf16* dy, const bf16* x, int n, int c, int k, int first_k,
                                           int column, bool bias, float (&total)[C::V][4],
                                           float (&ones_total)[4]) {
  const int warp = threadIdx.x / 32, steps = (n + 15) / 16;
  for (int first = warp; first < steps; first += C::kWarps * C::kBatch) {
    uint32_t a[C::kBatch][4];
    AcrossRows<C::V> b[C::kBatch];
#pragma unroll
    for (int i = 0; i < C::kBatch; ++i) {
      const int image = min(first + i * C::kWarps, steps) * 16, depth = n - image;
      b[i].load(x + static_cast<size_t>(image) * c + column, c, depth, column < c);
      load_scattered(a[i], k - first_k, depth,
                     [&](int row, int l) { return dy + static_cast<size_t>(image + l) * k + first_k + row; });
    }
    float acc[C::V][4] = {}, ones[4] = {};
#pragma unroll
    for (int i = 0; i < C::kBatch; ++i) {
#pragma unroll
      for (int j = 0; j < C::V; ++j) mma_bf16(acc[j], a[i], b[i].low(j), b[i].high(j));
      if (bias) mma_bf16(ones, a[i], kOnes, kOnes);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int j = 0; j < C::V; ++j) total[j][e] += acc[j][e];
      ones_total[e] += ones[e];
    }
  }
}

template <class C>
__global__ __launch_bounds__(C::kThreads) void linear_wgrad_few_outputs_kernel(
    const bf16* __restrict__ dy,  // [N,K]
    const bf16* __restrict__ x,   // [N,C]
    float* __restrict__ dw,       // [K,C]
    float* __restrict__ dbias,    // [K] or null
    int n, int c, int k) {
  __shared__ float sums[C::kWarps][16][C::kColumns];
  __shared__ float bias_sums[C::kWarps][16];
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
  const int groups = (k + 15) / 16;  // of outputs: neighbouring blocks share images
  const int first_column = static_cast<int>(blockIdx.x / groups) * C::kColumns;
  const int first_k = static_cast<int>(blockIdx.x % groups) * 16;
  const bool bias = dbias != nullptr && first_column == 0;
  float total[C::V][4] = {}, ones[4] = {};
  sum_images<C>(dy, x, n, c, k, first_k, first_column + g * C::V, bias, total, ones);
  // Product j's column 2t + e is column V * (2t + e) + j of the tile.
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8;
#pragma unroll
    for (int j = 0; j < C::V; ++j) sums[warp][row][C::V * (2 * t + e % 2) + j] = total[j][e];
    if (t == 0 && e % 2 == 0) bias_sums[warp][row] = ones[e];
  }
  __syncthreads();  // all warps' sums are written
  for (int i = threadIdx.x; i < 16 * C::kColumns; i += C::kThreads) {
    const int row = i / C::kColumns, column = i % C::kColumns;
    if (first_k + row >= k || first_column + column >= c) continue;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < C::kWarps; ++j) sum += sums[j][row][column];
    dw[static_cast<size_t>(first_k + row) * c + first_column + column] = sum;
  }
  if (!bias || threadIdx.x >= 16 || first_k + threadIdx.x >= k) return;
  float sum = 0;
  for (int j = 0; j < C::kWarps; ++j) sum += bias_sums[j][threadIdx.x];
  dbias[first_k + threadIdx.x] = sum;
}

template <int V, int kWarps>
Plan<LinearWgrad::Args> plan(const LinearProblem& p) {
  using C = Config<V, kWarps>;
  const unsigned blocks = grid_for(1LL * ceil_div(p.c, C::kColumns) * ceil_div(p.k, 16), 1);
  return make_plan<LinearWgrad::Args>(0, [p, blocks](const LinearWgrad::Args& a, void*, Stream stream) {
    linear_wgrad_few_outputs_kernel<C><<<blocks, C::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const bf16*>(a.dy), static_cast<const bf16*>(a.x), static_cast<float*>(a.dw),
        static_cast<float*>(a.dbias), p.n, p.c, p.k);
    check_launch("linear_wgrad_few_outputs_kernel");
  });
}

constexpr FewOutputsVariant<LinearWgrad> kVariants[] = {
    {"c64_w8", plan<8, 8>}, {"c32_w8", plan<4, 8>}, {"c32_w16", plan<4, 16>}, {"c16_w16", plan<2, 16>}};

// The widest columns whose blocks still fill half of the chip.
std::string_view unasked(const LinearProblem& p, const Device& device) {
  const long long wanted = device.multiprocessors / 2, groups = ceil_div(p.k, 16);
  if (ceil_div(p.c, 64) * groups >= 2 * wanted) return "c64_w8";
  return ceil_div(p.c, 32) * groups >= wanted ? "c32_w16" : "c16_w16";
}

}  // namespace

extern const Impl<LinearWgrad> linear_wgrad_few_outputs = {
    .name = "few_outputs",
    .supports = few_outputs_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          return choose_variant(kVariants, config, unasked(p, device)).plan(p);
        },
    .configs = [](const LinearProblem&, const Device&) { return variant_names(kVariants); },
    .preferred = few_outputs_preferred};

}  // namespace kiln
