// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], and with the
// epilogue of conv2d_epilogue.cuh.
//
// Implicit GEMM with m = (n,p,q), n = k, d = (r,s,c) on FP32 FMA units; conv2d_smem_tile.cuh tells what a
// block, a warp and a thread own. Neither the patches nor the filter are copied in global memory: a thread
// finds its pixels once, and the tap of its vector of channels once a step. 16-byte loads where C and
// c_stride allow it, single elements elsewhere. Shared memory 16 to 24 KiB. Any problem in fp32 or bf16,
// deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_patch_loader.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

using Wide = SmemTile<128, 64, 16, 8, 8, 3>;   // over 32 output channels
using Narrow = SmemTile<256, 32, 8, 8, 8, 3>;  // at most 32
using Small = SmemTile<64, 64, 16, 8, 4, 4>;   // where Wide is too few blocks, and for single elements

// B[d,n]: the filters, rows contiguous along d.
template <class T, class Tile, int V>
struct FilterLoader {
  using Map = TransposeMap<Tile, V, Tile::kN>;
  const T* w;  // [K,depth]
  int first_k, k_end, depth;
  Map map;
  Vec<T, V> staged[Map::kPasses];

  __device__ FilterLoader(const T* w, int first_k, int k_end, int depth)
      : w(w), first_k(first_k), k_end(k_end), depth(depth) {}

  __device__ __forceinline__ void load(int step) {
    const int d = step * Tile::kDepth + map.vector * V;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const int k = first_k + map.row(pass);
      const bool inside = d < depth && k < k_end && Map::inside(map.row(pass));
      staged[pass] = inside ? Vec<T, V>::load(w + (k * depth + d)) : Vec<T, V>{};
    }
  }
  __device__ __forceinline__ void store(float* slice) const {  // [kDepth][kN]
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) map.store(staged[pass], pass, slice);
  }
};

template <class T, class Tile, bool kFused>
__device__ void store_tile(const float (&acc)[Tile::kTm][Tile::kTn], unsigned first_m, unsigned pixels,
                           int first_k, int K, const float* bias,  // [K] or null, not of the fused
                           const Conv2dEpilogue& e,
                           T* y) {  // [pixels,K]
  const LanePlace<Tile> place;
#pragma unroll
  for (int g = 0; g < Tile::kTn; g += 4) {
    const int k = first_k + place.n(g);
    float b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = !kFused && bias && k + j < K ? bias[k + j] : 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kTm; ++i) {
      const unsigned m = first_m + place.m(i);
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = kFused ? acc[i][g + j] : acc[i][g + j] + b[j];
      if (m >= pixels) continue;
      const size_t at = static_cast<size_t>(m) * K + k;
      if constexpr (kFused) finish_four<T>(v, e, at, k, K);
      store4(y + at, v, K - k, K % 4 == 0, false);
    }
  }
}

// Single elements and an epilogue need more registers than four blocks leave.
template <class Tile, int V, bool kFused>
constexpr int kResident = Tile::kBlocks - (kFused && V == 1 ? 1 : 0);

template <class T, class Tile, int V, bool kFused>
__global__ __launch_bounds__(Tile::kThreads, (kResident<Tile, V, kFused>)) void conv2d_fwd_smem_tile_kernel(
    const T* __restrict__ x,         // [N,H,W,c_stride]
    const T* __restrict__ w,         // [K,R,S,C]
    T* __restrict__ y,               // [N,P,Q,K]
    const float* __restrict__ bias,  // [K] or null; of the plain kernel alone
    const __grid_constant__ Conv2dEpilogue epilogue, const __grid_constant__ Conv2dShape p,
    const __grid_constant__ PatchShape patch, const __grid_constant__ FastDivisor by_c,
    const __grid_constant__ FastDivisor by_s) {
  __shared__ SmemSlices<Tile> smem;
  const int tiles_n = (p.k + Tile::kN - 1) / Tile::kN;  // neighbouring blocks share their patches in L2
  const unsigned first_m = blockIdx.x / tiles_n * Tile::kM, pixels = p.n * p.p * p.q;
  const int first_k = blockIdx.x % tiles_n * Tile::kN;

  PatchLoader<T, Tile, V, 1> a(x, patch, by_c, by_s);
#pragma unroll
  for (int pass = 0; pass < a.map.kPasses; ++pass) {
    const unsigned m = first_m + a.map.row(pass);
    if (m < pixels) {
      const int row = m / p.q, q = m % p.q;
      a.set_pixel(pass, row / p.p, row % p.p * p.stride_h - p.pad_h, q * p.stride_w - p.pad_w);
    } else {
      a.set_nothing(pass);
    }
  }
  FilterLoader<T, Tile, V> b(w, first_k, p.k, patch.depth);
  float acc[Tile::kTm][Tile::kTn] = {};
  multiply<Tile, V, V>(a, b, (patch.depth + Tile::kDepth - 1) / Tile::kDepth, smem, acc);
  store_tile<T, Tile, kFused>(acc, first_m, pixels, first_k, p.k, bias, epilogue, y);
}

template <class T, class Tile, int V>
Plan<Conv2dFwd::Args> plan_tile(const Conv2dProblem& p) {
  return make_plan<Conv2dFwd::Args>(0, [p](const Conv2dFwd::Args& a, void*, Stream stream) {
    const PatchShape patch{p.h, p.w, p.c, p.x_channels(), p.s, p.r * p.s * p.c};
    const unsigned blocks = ceil_div(1LL * p.n * p.p() * p.q(), Tile::kM) * ceil_div(p.k, Tile::kN);
    const auto kernel = p.has_epilogue() ? conv2d_fwd_smem_tile_kernel<T, Tile, V, true>
                                         : conv2d_fwd_smem_tile_kernel<T, Tile, V, false>;
    kernel<<<blocks, Tile::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const T*>(a.w), static_cast<T*>(a.y),
        p.bias ? static_cast<const float*>(a.bias) : nullptr, conv2d_epilogue(p, a), Conv2dShape(p), patch,
        FastDivisor(p.c), FastDivisor(p.s));
    check_launch("conv2d_fwd_smem_tile_kernel");
  });
}

template <class T>
Plan<Conv2dFwd::Args> plan(const Conv2dProblem& p, const Device& device) {
  constexpr int V = kVec16<T>;
  if (p.c % V != 0 || p.x_channels() % V != 0) return plan_tile<T, Small, 1>(p);
  const long long pixels = 1LL * p.n * p.p() * p.q();
  const long long wide_blocks = ceil_div(pixels, Wide::kM) * ceil_div(p.k, Wide::kN);
  if (p.k <= Narrow::kN) return plan_tile<T, Narrow, V>(p);
  if (wide_blocks < 2 * device.multiprocessors) return plan_tile<T, Small, V>(p);
  return plan_tile<T, Wide, V>(p);
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_smem_tile = {
    .name = "smem_tile",
    .supports =
        [](const Conv2dProblem& p, const Device& device) {
          const Support types = conv2d_supports_fp32_bf16(p, device);
          return types ? conv2d_epilogue_supports(p) : types;
        },
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p, device) : plan<float>(p, device);
        }};

}  // namespace kiln
