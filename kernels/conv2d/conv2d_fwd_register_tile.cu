// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], and with the
// epilogue of conv2d_epilogue.cuh.
//
// Implicit GEMM in fp32 with m = (n,p,q), n = k, d = (r,s,c); conv2d_register_tile.cuh tells what a block, a
// warp and a thread own. x and w are both contiguous along d: both slices are deep, and a thread's 16-byte
// read is four channels of one pixel or one filter. Shared memory 16 to 40 KiB. fp32, C and c_stride in
// multiples of 4, filters up to 15 x 15; any K, stride and padding; deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_register_patch.cuh"
#include "kernels/conv2d/conv2d_register_plan.h"
#include "kernels/conv2d/conv2d_register_store.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

// B[d,n]: the filters, rows contiguous along d.
template <class Tile>
struct FilterCopier {
  using Map = DeepMap<Tile, Tile::kN, 2>;
  const float* w;  // [K,depth]
  int first_k, k_end, depth;
  Map map;

  __device__ FilterCopier(const float* w, int first_k, int k_end, int depth)
      : w(w), first_k(first_k), k_end(k_end), depth(depth) {}

  __device__ __forceinline__ void copy(int step, uint32_t slice) const {  // [kN][16]
    const int d = step * Tile::kDepth + map.chunk * 4;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const int k = first_k + map.row(pass);
      const bool inside = d < depth && k < k_end;
      cp_async16(slice + map.place(pass), w + (inside ? static_cast<unsigned>(k) * depth + d : 0u), inside);
    }
  }
};

template <class Tile, bool kFused>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_fwd_register_tile_kernel(
    const float* __restrict__ x,     // [N,H,W,c_stride]
    const float* __restrict__ w,     // [K,R,S,C]
    float* __restrict__ y,           // [N,P,Q,K]
    const float* __restrict__ bias,  // [K] or null; of the plain kernel alone
    const __grid_constant__ Conv2dEpilogue epilogue, const __grid_constant__ Conv2dShape p,
    const __grid_constant__ PatchShape patch, const __grid_constant__ FastDivisor by_c,
    const __grid_constant__ FastDivisor by_s) {
  __shared__ RegisterSlices<Tile> smem;
  __shared__ PatchRow rows[Tile::kM];
  const int tiles_n = (p.k + Tile::kN - 1) / Tile::kN;  // neighbouring blocks share their patches in L2
  const unsigned first_m = blockIdx.x / tiles_n * Tile::kM, pixels = p.n * p.p * p.q;
  const int first_k = blockIdx.x % tiles_n * Tile::kN;

  for (int row = threadIdx.x; row < Tile::kM; row += Tile::kThreads) {
    const unsigned m = first_m + row;
    const int line = m / p.q, q = m % p.q;
    rows[row] = m < pixels ? patch_row<1>(patch, line / p.p, line % p.p * p.stride_h - p.pad_h,
                                          q * p.stride_w - p.pad_w)
                           : PatchRow{};
  }
  __syncthreads();
  const PatchCopier<Tile, 1> a(x, patch, by_c, by_s, rows);
  const FilterCopier<Tile> b(w, first_k, p.k, patch.depth);
  float acc[Tile::kTm][Tile::kTn] = {};
  register_multiply<Tile, true, true>(a, b, (patch.depth + Tile::kDepth - 1) / Tile::kDepth, smem, acc);
  store_outputs<Tile, kFused>(acc, first_m, pixels, first_k, p.k, bias, epilogue, y);
}

template <class Tile>
Plan<Conv2dFwd::Args> plan_tile(const Conv2dProblem& p, const Device&) {
  return make_plan<Conv2dFwd::Args>(0, [p](const Conv2dFwd::Args& a, void*, Stream stream) {
    const PatchShape patch{p.h, p.w, p.c, p.x_channels(), p.s, p.r * p.s * p.c};
    const unsigned blocks = ceil_div(1LL * p.n * p.p() * p.q(), Tile::kM) * ceil_div(p.k, Tile::kN);
    const auto kernel = p.has_epilogue() ? conv2d_fwd_register_tile_kernel<Tile, true>
                                         : conv2d_fwd_register_tile_kernel<Tile, false>;
    kernel<<<blocks, Tile::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const float*>(a.x), static_cast<const float*>(a.w), static_cast<float*>(a.y),
        p.bias ? static_cast<const float*>(a.bias) : nullptr, conv2d_epilogue(p, a), Conv2dShape(p), patch,
        FastDivisor(p.c), FastDivisor(p.s));
    check_launch("conv2d_fwd_register_tile_kernel");
  });
}

using Wide = RegisterTile<128, 64, 8, 8, 3>;
using Tall = RegisterTile<256, 64, 8, 16, 2>;
using Small = RegisterTile<64, 64, 8, 8, 4>;    // where Wide is too few blocks
using Narrow = RegisterTile<128, 32, 8, 8, 6>;  // at most 32 output channels

constexpr RegisterCandidate<Conv2dFwd> kCandidates[] = {
    register_candidate<Conv2dFwd, Wide>("128x64", 1.0, plan_tile<Wide>),
    register_candidate<Conv2dFwd, Tall>("256x64", 0.98, plan_tile<Tall>),
    register_candidate<Conv2dFwd, Small>("64x64", 0.95, plan_tile<Small>),
    register_candidate<Conv2dFwd, Narrow>("128x32", 0.92, plan_tile<Narrow>)};

const RegisterCandidate<Conv2dFwd>& choose(const Conv2dProblem& p, const Device& device,
                                           std::string_view config) {
  return choose_register_tile<Conv2dFwd>(kCandidates, 1LL * p.n * p.p() * p.q(), p.k, false, device, config);
}

}  // namespace

double register_tile_fwd_cost(const Conv2dProblem& p, const Device& device) {
  return register_cost(choose(p, device, ""), 1LL * p.n * p.p() * p.q(), p.k, false, device);
}

extern const Impl<Conv2dFwd> conv2d_fwd_register_tile = {
    .name = "register_tile",
    .supports =
        [](const Conv2dProblem& p, const Device&) {
          if (p.x_channels() % 4 != 0) return Support::no("cs must be a multiple of 4");
          const Support tile = register_tile_supports(p);
          return tile ? conv2d_epilogue_supports(p) : tile;
        },
    .plan = [](const Conv2dProblem& p, const Device& device,
               std::string_view config) { return choose(p, device, config).plan(p, device); },
    .configs = [](const Conv2dProblem& p,
                  const Device&) { return register_configs<Conv2dFwd>(kCandidates, p.k); }};

}  // namespace kiln
