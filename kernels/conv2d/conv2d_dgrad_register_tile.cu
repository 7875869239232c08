// conv2d dgrad: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c].
//
// Implicit GEMM in fp32 with m = (n,h,w), n = c, d = (r,s,k); conv2d_register_tile.cuh tells what a block, a
// warp and a thread own. dy is contiguous along d, a deep slice; w along c, an across slice. Strides:
// blockIdx.y is a class of pixels that meet the same taps (conv2d_pixel_class.cuh), so that no zeros are
// multiplied. Shared memory 16 to 43 KiB. fp32, C and K in multiples of 4, filters up to 15 x 15, any stride
// up to 65535 classes, padding and c_stride; deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_pixel_class.cuh"
#include "kernels/conv2d/conv2d_register_patch.cuh"
#include "kernels/conv2d/conv2d_register_plan.h"
#include "kernels/conv2d/conv2d_register_store.cuh"

namespace kiln {
namespace {

// w[k, r, s, c] by a class's tap (i,j): offset(tap, k) + c, with r = a + sh*i and s = b + sw*j.
struct ClassFilter {
  int taps_w, first, step_i, step_j, step_k;
  __device__ ClassFilter(const Conv2dShape& p, const PixelClass& pixel_class)
      : taps_w(pixel_class.cols.taps),
        first((pixel_class.rows.remainder * p.s + pixel_class.cols.remainder) * p.c),
        step_i(p.stride_h * p.s * p.c),
        step_j(p.stride_w * p.c),
        step_k(p.r * p.s * p.c) {}
  __device__ __forceinline__ int offset(int i, int j, int k) const {
    return first + i * step_i + j * step_j + k * step_k;
  }
};

// B[d,n]: the filters at the class's taps, contiguous along c.
template <class Tile>
struct TapCopier {
  using Map = AcrossMap<Tile, Tile::kN>;
  const float* w;  // [K,R,S,C]
  ClassFilter filter;
  const FastDivisor &by_k, &by_taps_w;
  int K, depth, c;
  bool has_c;
  Map map;

  __device__ TapCopier(const float* w, const Conv2dShape& p, const PixelClass& pixel_class,
                       const FastDivisor& by_k, const FastDivisor& by_taps_w, int first_c, int depth)
      : w(w), filter(p, pixel_class), by_k(by_k), by_taps_w(by_taps_w), K(p.k), depth(depth) {
    c = first_c + map.column;
    has_c = c < p.c;
  }

  __device__ __forceinline__ void copy(int step, uint32_t slice) const {  // [16][kN]
    static_assert(4 % Map::kPasses == 0, "a thread's depths lie under one tap");
    const int d = step * Tile::kDepth + map.first_depth;
    const int tap = by_k.divide(d), i = by_taps_w.divide(tap);
    const bool inside = d < depth && has_c;
    const int offset = filter.offset(i, tap - i * filter.taps_w, d - tap * K) + c;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const auto from = static_cast<unsigned>(offset + pass * filter.step_k);
      cp_async16(slice + map.place(pass), w + (inside ? from : 0u), inside);
    }
  }
};

template <class Tile>
__device__ void store_tile(const float (&acc)[Tile::kTm][Tile::kTn], const Conv2dShape& p,
                           const PixelClass& pixel_class, unsigned first_m, int first_c,
                           const float* x,  // as dx, or null
                           float* dx) {     // [N,H,W,c_stride]
  const RegisterPlace<Tile, true> place;
#pragma unroll
  for (int i = 0; i < Tile::kTm; ++i) {
    unsigned pixel = first_m + place.m(i);
    if (pixel >= pixel_class.pixels(p.n)) continue;
    if (p.stride_h > 1 || p.stride_w > 1) {  // else the one class is all pixels in their order
      int n, h, w;
      pixel_class.locate(p, pixel, n, h, w);
      pixel = (n * p.h + h) * p.w + w;
    }
    store_gradients<Tile>(acc[i], p, pixel, first_c, x, dx);
  }
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_dgrad_register_tile_kernel(
    const float* __restrict__ dy,  // [N,P,Q,K]
    const float* __restrict__ w,   // [K,R,S,C]
    const float* __restrict__ x,   // [N,H,W,c_stride] or null
    float* __restrict__ dx,        // [N,H,W,c_stride]
    const __grid_constant__ Conv2dShape p, const __grid_constant__ FastDivisor by_k) {
  __shared__ RegisterSlices<Tile> smem;
  __shared__ PatchRow rows[Tile::kM];
  const PixelClass pixel_class(p, blockIdx.y);
  const int tiles_n =
      (p.c_stride + Tile::kN - 1) / Tile::kN;  // neighbouring blocks share their patches in L2
  const unsigned first_m = blockIdx.x / tiles_n * Tile::kM, pixels = pixel_class.pixels(p.n);
  const int first_c = blockIdx.x % tiles_n * Tile::kN;
  if (first_m >= pixels) return;  // the grid is as large as the largest class

  const int taps_w = pixel_class.cols.taps, depth = pixel_class.rows.taps * taps_w * p.k;
  const PatchShape patch{p.p, p.q, p.k, p.k, taps_w, depth};
  const FastDivisor by_taps_w(max(taps_w, 1));
  for (int row = threadIdx.x; row < Tile::kM; row += Tile::kThreads) {
    rows[row] = {};
    if (first_m + row < pixels) {
      int n, h, column;
      pixel_class.locate(p, first_m + row, n, h, column);
      rows[row] = patch_row<-1>(patch, n, (h + p.pad_h - pixel_class.rows.remainder) / p.stride_h,
                                (column + p.pad_w - pixel_class.cols.remainder) / p.stride_w);
    }
  }
  __syncthreads();
  const PatchCopier<Tile, -1> a(dy, patch, by_k, by_taps_w, rows);
  const TapCopier<Tile> b(w, p, pixel_class, by_k, by_taps_w, first_c, depth);
  float acc[Tile::kTm][Tile::kTn] = {};
  register_multiply<Tile, true, false>(a, b, (depth + Tile::kDepth - 1) / Tile::kDepth, smem, acc);
  store_tile<Tile>(acc, p, pixel_class, first_m, first_c, x, dx);
}

// Pixels of the largest class.
long long class_pixels(const Conv2dProblem& p) {
  return 1LL * p.n * ceil_div(p.h, p.stride_h) * ceil_div(p.w, p.stride_w);
}

template <class Tile>
Plan<Conv2dDgrad::Args> plan_tile(const Conv2dProblem& p, const Device&) {
  return make_plan<Conv2dDgrad::Args>(0, [p](const Conv2dDgrad::Args& a, void*, Stream stream) {
    const unsigned blocks = ceil_div(class_pixels(p), Tile::kM) * ceil_div(p.x_channels(), Tile::kN);
    const dim3 grid(blocks, p.stride_h * p.stride_w);
    conv2d_dgrad_register_tile_kernel<Tile><<<grid, Tile::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const float*>(a.dy), static_cast<const float*>(a.w),
        p.dact != ActKind::kNone ? static_cast<const float*>(a.x) : nullptr, static_cast<float*>(a.dx),
        Conv2dShape(p), FastDivisor(p.k));
    check_launch("conv2d_dgrad_register_tile_kernel");
  });
}

using Wide = RegisterTile<128, 64, 8, 8, 3>;
using Tall = RegisterTile<256, 64, 8, 16, 2>;
using Small = RegisterTile<64, 64, 8, 8, 6>;    // where Wide is too few blocks
using Narrow = RegisterTile<128, 32, 8, 8, 6>;  // at most 32 input channels

constexpr RegisterCandidate<Conv2dDgrad> kCandidates[] = {
    register_candidate<Conv2dDgrad, Wide>("128x64", 1.0, plan_tile<Wide>),
    register_candidate<Conv2dDgrad, Tall>("256x64", 0.98, plan_tile<Tall>),
    register_candidate<Conv2dDgrad, Small>("64x64", 0.95, plan_tile<Small>),
    register_candidate<Conv2dDgrad, Narrow>("128x32", 0.92, plan_tile<Narrow>)};

const RegisterCandidate<Conv2dDgrad>& choose(const Conv2dProblem& p, const Device& device,
                                             std::string_view config) {
  const long long pixels = class_pixels(p) * p.stride_h * p.stride_w;
  return choose_register_tile<Conv2dDgrad>(kCandidates, pixels, p.x_channels(), false, device, config);
}

}  // namespace

double register_tile_dgrad_cost(const Conv2dProblem& p, const Device& device) {
  const long long pixels = class_pixels(p) * p.stride_h * p.stride_w;
  return register_cost(choose(p, device, ""), pixels, p.x_channels(), false, device);
}

extern const Impl<Conv2dDgrad> conv2d_dgrad_register_tile = {
    .name = "register_tile",
    .supports =
        [](const Conv2dProblem& p, const Device&) {
          if (p.k % 4 != 0) return Support::no("output channels must be a multiple of 4");
          if (1LL * p.stride_h * p.stride_w > 65535)
            return Support::no("stride_h * stride_w must be below 65536");
          return register_tile_supports(p);
        },
    .plan = [](const Conv2dProblem& p, const Device& device,
               std::string_view config) { return choose(p, device, config).plan(p, device); },
    .configs = [](const Conv2dProblem& p,
                  const Device&) { return register_configs<Conv2dDgrad>(kCandidates, p.x_channels()); }};

}  // namespace kiln
