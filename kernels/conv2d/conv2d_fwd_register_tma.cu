// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], and with the
// epilogue of conv2d_epilogue.cuh.
//
// Implicit GEMM in fp32 with m = (n,p,q), n = k, d = (r,s,c); conv2d_register_tma.cuh tells what a block, a
// warp and a thread own. A first launch turns the filter, [K][R,S,C] to [R,S,C][K], into the workspace, so
// that it lies across as dgrad's does: as many bytes as the filter. Shared memory 48 to 64 KiB. Needs compute
// capability 9.0, fp32, C and c_stride in multiples of 4, filters up to 15 x 15, strides up to 8; any K and
// padding; deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_register_store.cuh"
#include "kernels/conv2d/conv2d_register_tma.cuh"

namespace kiln {
namespace {

constexpr int kTurnSide = 32, kTurnRows = 8;  // a block turns 32 x 32, 8 rows at a time

__global__ __launch_bounds__(kTurnSide* kTurnRows) void conv2d_fwd_register_tma_turn_kernel(
    const float* __restrict__ w,  // [K][depth]
    float* __restrict__ turned,   // [depth][padded_k], zeros from K on
    int K, int depth, int padded_k) {
  __shared__ float tile[kTurnSide][kTurnSide + 1];
  let_next_start();
  const int column = threadIdx.x % kTurnSide, first_row = threadIdx.x / kTurnSide;
  const int depth_tiles = (depth + kTurnSide - 1) / kTurnSide, tile_k = blockIdx.x / depth_tiles;
  const int first_d = (blockIdx.x - tile_k * depth_tiles) * kTurnSide, first_k = tile_k * kTurnSide;
  for (int row = first_row; row < kTurnSide; row += kTurnRows) {
    const int k = first_k + row, d = first_d + column;
    tile[row][column] = k < K && d < depth ? w[static_cast<size_t>(k) * depth + d] : 0.0f;
  }
  __syncthreads();
  for (int row = first_row; row < kTurnSide; row += kTurnRows) {
    const int d = first_d + row, k = first_k + column;
    if (d < depth && k < padded_k) turned[static_cast<size_t>(d) * padded_k + k] = tile[column][row];
  }
}

template <class Tile, bool kFused>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_fwd_register_tma_kernel(
    const __grid_constant__ CUtensorMap x,       // [N,H,W,c_stride], gathered
    const __grid_constant__ CUtensorMap filter,  // [R,S][C][padded K]
    float* __restrict__ y,                       // [N,P,Q,K]
    const float* __restrict__ bias,              // [K] or null; of the plain kernel alone
    const __grid_constant__ Conv2dEpilogue epilogue, const __grid_constant__ TurnedShape g) {
  extern __shared__ unsigned char raw[];
  __shared__ uint64_t full[2];
  __shared__ TurnedCorner corner;
  const unsigned tile_m = blockIdx.x / g.column_tiles;  // neighbouring blocks share their patches in L2
  const int first_n = (blockIdx.x - tile_m * g.column_tiles) * Tile::kN;
  turned_begin(g, tile_m * Tile::kM, first_n, full, corner);
  wait_for_last();  // the turned filter
  float acc[Tile::kTm][Tile::kTn] = {};
  turned_multiply<Tile, false>(x, filter, g, corner, turned_start<Tile>(raw), smem_address(full), acc);
  store_outputs<Tile, kFused>(acc, tile_m * Tile::kM, g.rows, first_n, g.columns, bias, epilogue, y);
}

template <class Tile>
Plan<Conv2dFwd::Args> plan_tile(const Conv2dProblem& p, const Device& device) {
  const WgmmaGather gather = wgmma_fwd_gather(p, device);
  const TurnedShape shape = turned_shape<Tile>(gather);
  const int depth = p.r * p.s * p.c, padded_k = ceil_div(p.k, 4) * 4;
  const auto kernel = p.has_epilogue() ? conv2d_fwd_register_tma_kernel<Tile, true>
                                       : conv2d_fwd_register_tma_kernel<Tile, false>;
  allow_shared_memory(kernel, Tile::kSmemBytes, "conv2d_fwd_register_tma: shared memory");
  return Plan<Conv2dFwd::Args>(
      sizeof(float) * static_cast<size_t>(depth) * padded_k, [=](const Conv2dFwd::Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const CUtensorMap x = turned_source_map<Tile>(gather, a.x);
        const CUtensorMap filter =
            make_dense_map({.base = workspace,
                            .element_bytes = 4,
                            .sizes = {static_cast<uint64_t>(padded_k), static_cast<uint64_t>(p.c),
                                      static_cast<uint64_t>(p.r * p.s), 1},
                            .box = {Tile::kN, Tile::kDepth, 1, 1}});
        return Bound([=](Stream stream) {
          const int turns = ceil_div(depth, kTurnSide) * ceil_div(padded_k, kTurnSide);
          conv2d_fwd_register_tma_turn_kernel<<<turns, kTurnSide * kTurnRows, 0, cuda_stream(stream)>>>(
              static_cast<const float*>(a.w), static_cast<float*>(workspace), p.k, depth, padded_k);
          check_launch("conv2d_fwd_register_tma_turn_kernel");
          launch_kernel(kernel, "conv2d_fwd_register_tma_kernel",
                        {.grid = turned_blocks<Tile>(shape),
                         .threads = Tile::kThreads,
                         .shared_bytes = Tile::kSmemBytes,
                         .early = true},
                        stream, x, filter, static_cast<float*>(a.y),
                        p.bias ? static_cast<const float*>(a.bias) : nullptr, conv2d_epilogue(p, a), shape);
        });
      });
}

using Square = TurnedTile<128, 64, 8, 8, 4, true>;
using Tall = TurnedTile<192, 64, 12, 8, 3, false>;
using Wide = TurnedTile<128, 128, 8, 16, 2, false>;

// Speeds are relative to register_tile's 128x64.
constexpr RegisterCandidate<Conv2dFwd> kCandidates[] = {
    register_candidate<Conv2dFwd, Square>("128x64", 1.17, plan_tile<Square>),
    register_candidate<Conv2dFwd, Tall>("192x64", 1.165, plan_tile<Tall>),
    register_candidate<Conv2dFwd, Wide>("128x128", 1.18, plan_tile<Wide>)};

const RegisterCandidate<Conv2dFwd>& choose(const Conv2dProblem& p, const Device& device,
                                           std::string_view config) {
  return choose_register_tile<Conv2dFwd>(kCandidates, 1LL * p.n * p.p() * p.q(), p.k, false, device, config,
                                         "register_tma");
}

// What the launch that turns the filter takes, in results of a step on one multiprocessor.
constexpr double kTurnCost = 24e3;

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_register_tma = {
    .name = "register_tma",
    .supports =
        [](const Conv2dProblem& p, const Device& device) {
          if (p.x_channels() % 4 != 0) return Support::no("cs must be a multiple of 4");
          const Support turned = register_tma_supports(p, device);
          return turned ? conv2d_epilogue_supports(p) : turned;
        },
    .plan = [](const Conv2dProblem& p, const Device& device,
               std::string_view config) { return choose(p, device, config).plan(p, device); },
    .configs = [](const Conv2dProblem& p,
                  const Device&) { return register_configs<Conv2dFwd>(kCandidates, p.k); },
    .preferred =
        [](const Conv2dProblem& p, const Device& device) {
          const double own =
              register_cost(choose(p, device, ""), 1LL * p.n * p.p() * p.q(), p.k, false, device);
          return turned_preferred(wgmma_fwd_gather(p, device), own, register_tile_fwd_cost(p, device),
                                  kTurnCost);
        }};

}  // namespace kiln
