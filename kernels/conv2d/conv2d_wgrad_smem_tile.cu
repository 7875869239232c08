// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c];  dbias[k] = sum
// dy[n,p,q,k].
//
// Implicit GEMM with m = k, n = (r,s,c), d = (n,p,q) on FP32 FMA units; conv2d_smem_tile.cuh tells what a
// block, a warp and a thread own. The output is small and d is long: d is cut into `splits` ranges
// (blockIdx.y), as many as fill the GPU, each summed by its own block into an fp32 partial dw in the
// workspace, and a second kernel adds the partials in order. dbias is reduced the same way. 16-byte loads
// where the channels allow it, single elements elsewhere. Shared memory 12 to 24 KiB. Any problem in fp32 or
// bf16, deterministic on a given GPU. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_shape.cuh"
#include "kernels/conv2d/conv2d_smem_tile.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

using Wide = SmemTile<64, 128, 16, 8, 8, 3>;    // over 32 output channels
using Narrow = SmemTile<32, 128, 16, 4, 8, 4>;  // at most 32
using Single = SmemTile<64, 32, 16, 4, 4, 5>;   // for single elements: image channels, odd counts

// A[d,m]: dy, contiguous along k.
template <class T, class Tile, int V>
struct GradLoader {
  using Map = DirectMap<Tile, V, Tile::kM>;
  const T* dy;  // [pixels,K]
  int first_k, K, first_pixel, pixel_end;
  Map map;
  Vec<T, V> staged[Map::kPasses];

  __device__ GradLoader(const T* dy, int first_k, int K, int first_pixel, int pixel_end)
      : dy(dy), first_k(first_k), K(K), first_pixel(first_pixel), pixel_end(pixel_end) {}

  __device__ __forceinline__ void load(int step) {
    const int k = first_k + map.column;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const int pixel = first_pixel + step * Tile::kDepth + map.depth(pass);
      const bool inside = pixel < pixel_end && k < K && Map::inside(map.depth(pass));
      staged[pass] = inside ? Vec<T, V>::load(dy + (pixel * K + k)) : Vec<T, V>{};
    }
  }
  __device__ __forceinline__ void store(float* slice) const {  // [kDepth][kM]
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) map.store(staged[pass], pass, slice);
  }
};

// B[d,n]: x under tap (r,s), contiguous along c. A thread's column, and so its tap, is the same in every
// step.
template <class T, class Tile, int V>
struct ColumnLoader {
  using Map = DirectMap<Tile, V, Tile::kN>;
  const T* x;  // [N,H,W,c_stride]
  const Conv2dShape& p;
  const FastDivisor &by_p, &by_q;
  int r, s, c, first_pixel, pixel_end;
  Map map;
  Vec<T, V> staged[Map::kPasses];

  __device__ ColumnLoader(const T* x, const Conv2dShape& p, const FastDivisor& by_p, const FastDivisor& by_q,
                          int first_column, int first_pixel, int pixel_end)
      : x(x), p(p), by_p(by_p), by_q(by_q), first_pixel(first_pixel), pixel_end(pixel_end) {
    const int column = first_column + map.column;
    c = column % p.c;
    s = column / p.c % p.s;
    r = column / p.c / p.s;
    if (r >= p.r) this->pixel_end = 0;  // beyond the filter: zeros
  }

  __device__ __forceinline__ void load(int step) {
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const int pixel = first_pixel + step * Tile::kDepth + map.depth(pass);
      const int row = by_q.divide(pixel), n = by_p.divide(row);
      const int h = (row - n * p.p) * p.stride_h - p.pad_h + r;
      const int w = (pixel - row * p.q) * p.stride_w - p.pad_w + s;
      const bool inside = pixel < pixel_end && static_cast<unsigned>(h) < static_cast<unsigned>(p.h) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(p.w) &&
                          Map::inside(map.depth(pass));
      staged[pass] = inside ? Vec<T, V>::load(x + (((n * p.h + h) * p.w + w) * p.c_stride + c)) : Vec<T, V>{};
    }
  }
  __device__ __forceinline__ void store(float* slice) const {  // [kDepth][kN]
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) map.store(staged[pass], pass, slice);
  }
};

template <class T, class Tile, int V>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_wgrad_smem_tile_kernel(
    const T* __restrict__ dy,     // [N,P,Q,K]
    const T* __restrict__ x,      // [N,H,W,c_stride]
    float* __restrict__ partial,  // [splits,K,R,S,C]
    int split_pixels, const __grid_constant__ Conv2dShape p, const __grid_constant__ FastDivisor by_p,
    const __grid_constant__ FastDivisor by_q) {
  let_next_start();
  __shared__ SmemSlices<Tile> smem;
  const int columns = p.r * p.s * p.c, tiles_n = (columns + Tile::kN - 1) / Tile::kN;
  const int first_k = blockIdx.x / tiles_n * Tile::kM, first_column = blockIdx.x % tiles_n * Tile::kN;
  const int first_pixel = blockIdx.y * split_pixels, pixels = p.n * p.p * p.q;
  const int count = min(split_pixels, pixels - first_pixel);

  GradLoader<T, Tile, V> a(dy, first_k, p.k, first_pixel, first_pixel + count);
  ColumnLoader<T, Tile, V> b(x, p, by_p, by_q, first_column, first_pixel, first_pixel + count);
  float acc[Tile::kTm][Tile::kTn] = {};
  multiply<Tile, 0, 0>(a, b, (count + Tile::kDepth - 1) / Tile::kDepth, smem, acc);

  const LanePlace<Tile> place;
  float* out = partial + static_cast<size_t>(blockIdx.y) * p.k * columns;
#pragma unroll
  for (int i = 0; i < Tile::kTm; ++i) {
    const int k = first_k + place.m(i);
#pragma unroll
    for (int g = 0; g < Tile::kTn; g += 4) {
      const int column = first_column + place.n(g);
      const float v[4] = {acc[i][g], acc[i][g + 1], acc[i][g + 2], acc[i][g + 3]};
      if (k < p.k) {
        store4(out + static_cast<size_t>(k) * columns + column, v, columns - column, columns % 4 == 0, false);
      }
    }
  }
}

template <class T, class Tile, int V>
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
        const auto* dy = static_cast<const T*>(a.dy);
        conv2d_wgrad_smem_tile_kernel<T, Tile, V>
            <<<dim3(tiles, split.count), Tile::kThreads, 0, cuda_stream(stream)>>>(
                dy, static_cast<const T*>(a.x), split.count > 1 ? partial : static_cast<float*>(a.dw),
                split.length, Conv2dShape(p), FastDivisor(p.p()), FastDivisor(p.q()));
        check_launch("conv2d_wgrad_smem_tile_kernel");
        if (split.count > 1)
          sum_splits(partial, split.count, p.k * columns, static_cast<float*>(a.dw), stream);
        if (p.bias) {
          sum_rows(dy, pixels, p.k, rows, partial + partial_floats, static_cast<float*>(a.dbias), stream);
        }
      });
}

template <class T>
Plan<Conv2dWgrad::Args> plan(const Conv2dProblem& p, const Device& device) {
  constexpr int V = kVec16<T>;
  if (p.c % V != 0 || p.x_channels() % V != 0 || p.k % V != 0) return plan_tile<T, Single, 1>(p, device);
  return p.k <= Narrow::kM ? plan_tile<T, Narrow, V>(p, device) : plan_tile<T, Wide, V>(p, device);
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_smem_tile = {
    .name = "smem_tile",
    .supports = conv2d_supports_fp32_bf16,
    .plan = [](const Conv2dProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan<bf16>(p, device) : plan<float>(p, device);
    }};

}  // namespace kiln
