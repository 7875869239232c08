// linear fwd with few outputs: y[n,k] = bias[k] + sum_c x[n,c] * w[k,c].
//
// The product is turned over, so that rows are the outputs k, in tiles of 16 or 32, and columns the images, 8
// or 16 of them a block: that leaves no tensor core row to images that are not there and many blocks to a
// small batch. Both operands lie along the sum; see linear_few_outputs.cuh for the fragments. The block's
// warps take slices of 32 c in turn, each short chain is added to sums in fp32, and the warps' sums meet
// in shared memory (4 to 32 KiB), in the order of the warps. Config "few_outputs:i8_w16": images and warps of
// a block. Needs bf16, c a multiple of 8, k at most 128; y is bf16 or fp32. Deterministic. Mirrors
// cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/linear/linear_few_outputs.cuh"

namespace kiln {
namespace {

template <int kMT_, int kNT_, int kWarps_>
struct Config {
  static constexpr int kMT = kMT_, kNT = kNT_, kWarps = kWarps_, kThreads = kWarps * 32;
  static constexpr int kOutputs = kMT * 16, kImages = kNT * 8;
  static constexpr int kBatch = kMT * kNT == 4 ? 2 : 4;  // slices whose loads are under way together
  static_assert(kWarps * kOutputs * kImages * 4 <= 48 * 1024, "static shared memory");
};

// The warp's sums over its slices of c.
template <class C>
__device__ __forceinline__ void sum_slices(const bf16* x, const bf16* w, int n, int c, int k, int first_image,
                                           int first_k, float (&total)[C::kMT][C::kNT][4]) {
  const int g = threadIdx.x % 32 / 4, warp = threadIdx.x / 32, slices = (c + 31) / 32;
  for (int first = warp; first < slices; first += C::kWarps * C::kBatch) {
    EightBf16 a[C::kBatch][C::kMT][2], b[C::kBatch][C::kNT];
#pragma unroll
    for (int i = 0; i < C::kBatch; ++i) {
      const int l = (first + i * C::kWarps) * 32 + threadIdx.x % 4 * 8;
#pragma unroll
      for (int j = 0; j < C::kNT; ++j) {
        const int image = first_image + j * 8 + g;
        b[i][j] = load_eight(x + static_cast<size_t>(image) * c + l, image < n && l < c);
      }
#pragma unroll
      for (int m = 0; m < C::kMT * 2; ++m) {
        const int output = first_k + m * 8 + g;
        a[i][m / 2][m % 2] = load_eight(w + static_cast<size_t>(output) * c + l, output < k && l < c);
      }
    }
    float acc[C::kMT][C::kNT][4] = {};
#pragma unroll
    for (int i = 0; i < C::kBatch * 2; ++i) {
      const int p = i % 2 * 2;
#pragma unroll
      for (int m = 0; m < C::kMT; ++m) {
        const EightBf16(&rows)[2] = a[i / 2][m];
        const uint32_t fragment[4] = {rows[0].pair[p], rows[1].pair[p], rows[0].pair[p + 1],
                                      rows[1].pair[p + 1]};
#pragma unroll
        for (int j = 0; j < C::kNT; ++j) {
          mma_bf16(acc[m][j], fragment, b[i / 2][j].pair[p], b[i / 2][j].pair[p + 1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < C::kMT * C::kNT * 4; ++m) {
      total[m / (C::kNT * 4)][m / 4 % C::kNT][m % 4] += acc[m / (C::kNT * 4)][m / 4 % C::kNT][m % 4];
    }
  }
}

template <class C>
__global__ __launch_bounds__(C::kThreads, 1) void linear_fwd_few_outputs_kernel(
    const bf16* __restrict__ x,      // [N,C]
    const bf16* __restrict__ w,      // [K,C]
    const float* __restrict__ bias,  // [K] or null
    void* __restrict__ y,            // [N,K] bf16, or fp32 with f32_out
    int n, int c, int k, bool f32_out) {
  __shared__ float sums[C::kWarps][C::kImages][C::kOutputs];
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
  const int groups = (k + C::kOutputs - 1) / C::kOutputs;  // of outputs: neighbouring blocks share images
  const int first_image = static_cast<int>(blockIdx.x / groups) * C::kImages;
  const int first_k = static_cast<int>(blockIdx.x % groups) * C::kOutputs;
  float total[C::kMT][C::kNT][4] = {};
  sum_slices<C>(x, w, n, c, k, first_image, first_k, total);
#pragma unroll
  for (int m = 0; m < C::kMT; ++m) {
#pragma unroll
    for (int j = 0; j < C::kNT; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[warp][j * 8 + 2 * t + e % 2][m * 16 + g + e / 2 * 8] = total[m][j][e];
    }
  }
  __syncthreads();  // all warps' sums are written
  for (int i = threadIdx.x; i < C::kImages * C::kOutputs; i += C::kThreads) {
    const int image = first_image + i / C::kOutputs, output = first_k + i % C::kOutputs;
    if (image >= n || output >= k) continue;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < C::kWarps; ++j) sum += sums[j][i / C::kOutputs][i % C::kOutputs];
    const float v[1] = {sum + (bias ? bias[output] : 0.0f)};
    store_run(y, f32_out, static_cast<size_t>(image) * k + output, v);
  }
}

template <class C>
Plan<LinearFwd::Args> plan_for(const LinearProblem& p) {
  const unsigned blocks = grid_for(1LL * ceil_div(p.n, C::kImages) * ceil_div(p.k, C::kOutputs), 1);
  return make_plan<LinearFwd::Args>(0, [p, blocks](const LinearFwd::Args& a, void*, Stream stream) {
    linear_fwd_few_outputs_kernel<C><<<blocks, C::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const bf16*>(a.x), static_cast<const bf16*>(a.w), static_cast<const float*>(a.bias), a.y,
        p.n, p.c, p.k, p.f32_out);
    check_launch("linear_fwd_few_outputs_kernel");
  });
}

template <int kNT, int kWarps>
Plan<LinearFwd::Args> plan(const LinearProblem& p) {
  return p.k <= 16 ? plan_for<Config<1, kNT, kWarps>>(p) : plan_for<Config<2, kNT, kWarps>>(p);
}

constexpr FewOutputsVariant<LinearFwd> kVariants[] = {
    {"i8_w8", plan<1, 8>}, {"i8_w16", plan<1, 16>}, {"i16_w8", plan<2, 8>}, {"i16_w16", plan<2, 16>}};

// Long sums want many warps; w is read once a block, so that many images want large blocks.
std::string_view unasked(const LinearProblem& p, const Device& device) {
  const bool large = p.n > 8 * device.multiprocessors, deep = p.c >= 1024;
  return large ? (deep ? "i16_w16" : "i16_w8") : (deep ? "i8_w16" : "i8_w8");
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_few_outputs = {
    .name = "few_outputs",
    .supports = few_outputs_supports,
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          return choose_variant(kVariants, config, unasked(p, device)).plan(p);
        },
    .configs = [](const LinearProblem&, const Device&) { return variant_names(kVariants); },
    .preferred = few_outputs_preferred};

}  // namespace kiln
