// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c];  dbias[k] = sum
// dy[n,p,q,k].
//
// Implicit GEMM in fp32 with m = k, n = (r,s,c), d = (n,p,q); conv2d_register_tile.cuh tells what a block, a
// warp and a thread own. Both tensors lie across d: both slices are rows of channels. d is cut into ranges
// (blockIdx.y), as many as fill the GPU; a range's sum goes to the workspace, and a second kernel adds the
// ranges in order. dbias is reduced the same way. Shared memory 16 to 32 KiB. fp32, C, c_stride and K in
// multiples of 4, filters up to 15 x 15, any stride and padding; deterministic on a given GPU. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_register_plan.h"
#include "kernels/conv2d/conv2d_register_tile.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

// A[d,m]: dy, contiguous along k.
template <class Tile>
struct GradCopier {
  using Map = AcrossMap<Tile, Tile::kM>;
  const float* dy;  // [pixels,K]
  int K, first_pixel, pixel_end, k;
  Map map;

  __device__ GradCopier(const float* dy, int first_k, int K, int first_pixel, int pixel_end)
      : dy(dy), K(K), first_pixel(first_pixel), pixel_end(pixel_end) {
    k = first_k + map.column;
    if (k >= K) this->pixel_end = 0;
  }

  __device__ __forceinline__ void copy(int step, uint32_t slice) const {  // [16][kM]
    const int first = first_pixel + step * Tile::kDepth;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      if (!map.has(pass)) break;
      const int pixel = first + map.depth(pass);
      const bool inside = pixel < pixel_end;
      cp_async16(slice + map.place(pass), dy + (inside ? static_cast<unsigned>(pixel) * K + k : 0u), inside);
    }
  }
};

// B[d,n]: x under tap (r,s), contiguous along c. A thread's column, and so its tap, is the same in every
// step. A step's 16 pixels are located by a warp's lanes, one each, and handed round.
template <class Tile>
struct ColumnCopier {
  using Map = AcrossMap<Tile, Tile::kN>;
  const float* x;  // [N,H,W,c_stride]
  const Conv2dShape& p;
  const FastDivisor &by_p, &by_q;
  int first_pixel, pixel_end;
  unsigned offset, wanted;  // the column's tap and channel, from its window's start
  Map map;

  __device__ ColumnCopier(const float* x, const Conv2dShape& p, const FastDivisor& by_p,
                          const FastDivisor& by_q, int first_column, int first_pixel, int pixel_end)
      : x(x), p(p), by_p(by_p), by_q(by_q), first_pixel(first_pixel), pixel_end(pixel_end) {
    const int column = first_column + map.column;
    const int c = column % p.c, s = column / p.c % p.s, r = column / p.c / p.s;
    offset = static_cast<unsigned>((r * p.w + s) * p.c_stride + c);
    wanted = r < p.r ? tap_mask(r, s) : kNoTap;  // beyond the filter: zeros
  }

  __device__ __forceinline__ void copy(int step, uint32_t slice) const {  // [16][kN]
    const int mine = first_pixel + step * Tile::kDepth + threadIdx.x % Tile::kDepth;
    const int row = by_q.divide(mine), n = by_p.divide(row);
    const int h = (row - n * p.p) * p.stride_h - p.pad_h, w = (mine - row * p.q) * p.stride_w - p.pad_w;
    const auto base = ((static_cast<unsigned>(n) * p.h + h) * p.w + w) * p.c_stride;
    const unsigned taps =
        mine < pixel_end ? reached_taps<1>(h, p.h, kMostTaps) | reached_taps<1>(w, p.w, kMostTaps) << 16 : 0;
    static_assert(Tile::kDepth % Map::kStep == 0, "the lanes of a warp make the same passes");
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const unsigned from = __shfl_sync(~0u, base, map.depth(pass)) + offset;
      const bool inside = (wanted & ~__shfl_sync(~0u, taps, map.depth(pass))) == 0;
      cp_async16(slice + map.place(pass), x + (inside ? from : 0u), inside);
    }
  }
};

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_wgrad_register_tile_kernel(
    const float* __restrict__ dy,  // [N,P,Q,K]
    const float* __restrict__ x,   // [N,H,W,c_stride]
    float* __restrict__ partial,   // [splits,K,R,S,C]
    int split_pixels, const __grid_constant__ Conv2dShape p, const __grid_constant__ FastDivisor by_p,
    const __grid_constant__ FastDivisor by_q) {
  let_next_start();
  __shared__ RegisterSlices<Tile> smem;
  const int columns = p.r * p.s * p.c, tiles_n = (columns + Tile::kN - 1) / Tile::kN;
  const int first_k = blockIdx.x / tiles_n * Tile::kM, first_column = blockIdx.x % tiles_n * Tile::kN;
  const int first_pixel = blockIdx.y * split_pixels, pixels = p.n * p.p * p.q;
  const int count = min(split_pixels, pixels - first_pixel);

  const GradCopier<Tile> a(dy, first_k, p.k, first_pixel, first_pixel + count);
  const ColumnCopier<Tile> b(x, p, by_p, by_q, first_column, first_pixel, first_pixel + count);
  float acc[Tile::kTm][Tile::kTn] = {};
  register_multiply<Tile, false, false>(a, b, (count + Tile::kDepth - 1) / Tile::kDepth, smem, acc);

  const RegisterPlace<Tile, false> place;
  float* out = partial + static_cast<size_t>(blockIdx.y) * p.k * columns;
#pragma unroll
  for (int i = 0; i < Tile::kTm; ++i) {
    const int k = first_k + place.m(i);
    if (k >= p.k) continue;
#pragma unroll
    for (int g = 0; g < Tile::kTn; g += 4) {
      const int column = first_column + place.n(g);
      const Vec<float, 4> v{{acc[i][g], acc[i][g + 1], acc[i][g + 2], acc[i][g + 3]}};
      if (column < columns) v.store(out + static_cast<size_t>(k) * columns + column);
    }
  }
}

template <class Tile>
Plan<Conv2dWgrad::Args> plan_tile(const Conv2dProblem& p, const Device& device) {
  const int columns = p.r * p.s * p.c, pixels = p.n * p.p() * p.q();
  const unsigned tiles = ceil_div(p.k, Tile::kM) * ceil_div(columns, Tile::kN);
  const Split split =
      choose_split(pixels, Tile::kDepth, tiles, Tile::kBlocks * device.multiprocessors, 1LL * p.k * columns);
  const size_t partial_floats = split.count > 1 ? static_cast<size_t>(split.count) * p.k * columns : 0;
  const Split rows =
      p.bias ? choose_split(pixels, 256, ceil_div(p.k, 32), 4 * device.multiprocessors, p.k) : Split{};
  const size_t row_floats = p.bias ? static_cast<size_t>(rows.count) * p.k : 0;
  return make_plan<Conv2dWgrad::Args>(
      sizeof(float) * (partial_floats + row_floats),
      [=](const Conv2dWgrad::Args& a, void* workspace, Stream stream) {
        auto* partial = static_cast<float*>(workspace);
        const auto* dy = static_cast<const float*>(a.dy);
        conv2d_wgrad_register_tile_kernel<Tile>
            <<<dim3(tiles, split.count), Tile::kThreads, 0, cuda_stream(stream)>>>(
                dy, static_cast<const float*>(a.x), split.count > 1 ? partial : static_cast<float*>(a.dw),
                split.length, Conv2dShape(p), FastDivisor(p.p()), FastDivisor(p.q()));
        check_launch("conv2d_wgrad_register_tile_kernel");
        if (split.count > 1)
          sum_splits(partial, split.count, p.k * columns, static_cast<float*>(a.dw), stream);
        if (p.bias) {
          sum_rows(dy, pixels, p.k, rows, partial + partial_floats, static_cast<float*>(a.dbias), stream);
        }
      });
}

// Widths that divide 3 x 3 filters of 32 and 64 channels, and one for few output channels.
using Middle = RegisterTile<64, 96, 8, 8, 4>;
using Small = RegisterTile<64, 64, 8, 8, 6>;
using Large = RegisterTile<128, 128, 8, 16, 2>;
using Narrow = RegisterTile<32, 128, 4, 8, 4>;

constexpr RegisterCandidate<Conv2dWgrad> kCandidates[] = {
    register_candidate<Conv2dWgrad, Small>("64x64", 1.0, plan_tile<Small>),
    register_candidate<Conv2dWgrad, Large>("128x128", 0.99, plan_tile<Large>),
    register_candidate<Conv2dWgrad, Middle>("64x96", 0.95, plan_tile<Middle>),
    register_candidate<Conv2dWgrad, Narrow>("32x128", 0.7, plan_tile<Narrow>)};

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_register_tile = {
    .name = "register_tile",
    .supports =
        [](const Conv2dProblem& p, const Device&) {
          if (p.x_channels() % 4 != 0) return Support::no("cs must be a multiple of 4");
          if (p.k % 4 != 0) return Support::no("output channels must be a multiple of 4");
          return register_tile_supports(p);
        },
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return choose_register_tile<Conv2dWgrad>(kCandidates, p.k, p.r * p.s * p.c, true, device, config)
              .plan(p, device);
        },
    .configs = [](const Conv2dProblem& p,
                  const Device&) { return register_configs<Conv2dWgrad>(kCandidates, p.r * p.s * p.c); }};

}  // namespace kiln
