// conv2d dgrad, stride 1: dx[n,h,w,c] (+)= sum_{k,r,s} dy[n, h+ph-r, w+pw-s, k] * w[k,r,s,c].
//
// Implicit GEMM in fp32 with m = (n,h,w), n = c, d = (r,s,k); conv2d_register_tma.cuh tells what a block, a
// warp and a thread own. dy is gathered from its upper left corner on, so that its taps are the filter's from
// the last to the first. Shared memory 48 to 64 KiB. Needs compute capability 9.0, fp32, C and K in multiples
// of 4, filters up to 15 x 15, stride 1; any padding and c_stride; deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/launch.h"
#include "kernels/conv2d/conv2d_register_store.cuh"
#include "kernels/conv2d/conv2d_register_tma.cuh"

namespace kiln {
namespace {

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_dgrad_register_tma_kernel(
    const __grid_constant__ CUtensorMap dy,      // [N,P,Q,K], gathered
    const __grid_constant__ CUtensorMap filter,  // [K][R,S][C]
    const float* __restrict__ x,                 // [N,H,W,c_stride] or null
    float* __restrict__ dx,                      // [N,H,W,c_stride]
    const __grid_constant__ Conv2dShape p, const __grid_constant__ TurnedShape g) {
  extern __shared__ unsigned char raw[];
  __shared__ uint64_t full[2];
  __shared__ TurnedCorner corner;
  const unsigned tile_m = blockIdx.x / g.column_tiles;  // neighbouring blocks share their patches in L2
  const int first_n = (blockIdx.x - tile_m * g.column_tiles) * Tile::kN;
  turned_begin(g, tile_m * Tile::kM, first_n, full, corner);
  float acc[Tile::kTm][Tile::kTn] = {};
  turned_multiply<Tile, true>(dy, filter, g, corner, turned_start<Tile>(raw), smem_address(full), acc);
  const RegisterPlace<Tile, true> place;
#pragma unroll
  for (int i = 0; i < Tile::kTm; ++i) {
    const int pixel = tile_m * Tile::kM + place.m(i);
    if (pixel < g.rows) store_gradients<Tile>(acc[i], p, pixel, first_n, x, dx);
  }
}

// As wgmma gathers dy; the columns are all that a pixel of dx has.
WgmmaGather dgrad_gather(const Conv2dProblem& p, const Device& device) {
  WgmmaGather gather = wgmma_dgrad_gather(p, device);
  gather.shape.columns = p.x_channels();
  return gather;
}

template <class Tile>
Plan<Conv2dDgrad::Args> plan_tile(const Conv2dProblem& p, const Device& device) {
  const WgmmaGather gather = dgrad_gather(p, device);
  const TurnedShape shape = turned_shape<Tile>(gather);
  const auto kernel = conv2d_dgrad_register_tma_kernel<Tile>;
  allow_shared_memory(kernel, Tile::kSmemBytes, "conv2d_dgrad_register_tma: shared memory");
  return Plan<Conv2dDgrad::Args>(0, [=](const Conv2dDgrad::Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap dy = turned_source_map<Tile>(gather, a.dy);
    const CUtensorMap filter =
        make_dense_map({.base = a.w,
                        .element_bytes = 4,
                        .sizes = {static_cast<uint64_t>(p.c), static_cast<uint64_t>(p.r * p.s),
                                  static_cast<uint64_t>(p.k), 1},
                        .box = {Tile::kN, 1, Tile::kDepth, 1}});
    return Bound([=](Stream stream) {
      launch_kernel(
          kernel, "conv2d_dgrad_register_tma_kernel",
          {.grid = turned_blocks<Tile>(shape), .threads = Tile::kThreads, .shared_bytes = Tile::kSmemBytes},
          stream, dy, filter, p.dact != ActKind::kNone ? static_cast<const float*>(a.x) : nullptr,
          static_cast<float*>(a.dx), Conv2dShape(p), shape);
    });
  });
}

using Square = TurnedTile<128, 64, 8, 8, 4, true>;
using Tall = TurnedTile<192, 64, 12, 8, 3, false>;
using Wide = TurnedTile<128, 128, 8, 16, 2, false>;

// Speeds are relative to register_tile's 128x64.
constexpr RegisterCandidate<Conv2dDgrad> kCandidates[] = {
    register_candidate<Conv2dDgrad, Square>("128x64", 1.1, plan_tile<Square>),
    register_candidate<Conv2dDgrad, Tall>("192x64", 1.095, plan_tile<Tall>),
    register_candidate<Conv2dDgrad, Wide>("128x128", 1.11, plan_tile<Wide>)};

const RegisterCandidate<Conv2dDgrad>& choose(const Conv2dProblem& p, const Device& device,
                                             std::string_view config) {
  return choose_register_tile<Conv2dDgrad>(kCandidates, 1LL * p.n * p.h * p.w, p.x_channels(), false, device,
                                           config, "register_tma");
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_register_tma = {
    .name = "register_tma",
    .supports =
        [](const Conv2dProblem& p, const Device& device) {
          if (p.k % 4 != 0) return Support::no("output channels must be a multiple of 4");
          if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
          return register_tma_supports(p, device);
        },
    .plan = [](const Conv2dProblem& p, const Device& device,
               std::string_view config) { return choose(p, device, config).plan(p, device); },
    .configs = [](const Conv2dProblem& p,
                  const Device&) { return register_configs<Conv2dDgrad>(kCandidates, p.x_channels()); },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          const double own =
              register_cost(choose(p, device, ""), 1LL * p.n * p.h * p.w, p.x_channels(), false, device);
          return turned_preferred(dgrad_gather(p, device), own, register_tile_dgrad_cost(p, device), 0);
        }};

}  // namespace kiln
