// conv2d dgrad: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c].
//
// Implicit GEMM with m = (n,h,w), n = c, d = (r,s,k) on FP32 FMA units; conv2d_smem_tile.cuh tells what a
// block, a warp and a thread own. Pixels are taken by the remainders of (h+ph, w+pw) by the strides,
// blockIdx.y = (a,b): all pixels of a class meet the same taps r = a + sh*i, s = b + sw*j, at p = (h+ph-a)/sh
// - i, so that a strided dgrad multiplies no zeros and each class is an unstrided gather. 16-byte loads where
// C and K allow it, single elements elsewhere. Shared memory 16 to 24 KiB. Any problem in fp32 or bf16 with
// fewer than 65536 classes, deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_patch_loader.cuh"
#include "kernels/conv2d/conv2d_pixel_class.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

using Wide = SmemTile<128, 64, 16, 8, 8, 3>;   // over 32 input channels
using Narrow = SmemTile<256, 32, 8, 8, 8, 3>;  // at most 32
using Small = SmemTile<64, 64, 16, 8, 4, 4>;   // where Wide is too few blocks, and for single elements

// B[d,n]: w[k, r, s, c] at the class's taps, contiguous along c.
template <class T, class Tile, int V>
struct TapLoader {
  using Map = DirectMap<Tile, V, Tile::kN>;
  const T* w;  // [K,R,S,C]
  const Conv2dShape& p;
  const PixelClass& pixel_class;
  const FastDivisor &by_k, &by_taps_w;
  int first_c, depth;
  Map map;
  Vec<T, V> staged[Map::kPasses];

  __device__ TapLoader(const T* w, const Conv2dShape& p, const PixelClass& pixel_class,
                       const FastDivisor& by_k, const FastDivisor& by_taps_w, int first_c, int depth)
      : w(w),
        p(p),
        pixel_class(pixel_class),
        by_k(by_k),
        by_taps_w(by_taps_w),
        first_c(first_c),
        depth(depth) {}

  __device__ __forceinline__ void load(int step) {
    const int c = first_c + map.column;
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) {
      const int d = step * Tile::kDepth + map.depth(pass);
      const int tap = by_k.divide(d), i = by_taps_w.divide(tap), k = d - tap * p.k;
      const int r = pixel_class.rows.remainder + i * p.stride_h;
      const int s = pixel_class.cols.remainder + (tap - i * pixel_class.cols.taps) * p.stride_w;
      const bool inside = d < depth && c < p.c && Map::inside(map.depth(pass));
      staged[pass] = inside ? Vec<T, V>::load(w + (((k * p.r + r) * p.s + s) * p.c + c)) : Vec<T, V>{};
    }
  }
  __device__ __forceinline__ void store(float* slice) const {  // [kDepth][kN]
#pragma unroll
    for (int pass = 0; pass < Map::kPasses; ++pass) map.store(staged[pass], pass, slice);
  }
};

template <class T, class Tile>
__device__ void store_tile(const float (&acc)[Tile::kTm][Tile::kTn], const Conv2dShape& p,
                           const PixelClass& pixel_class, unsigned first_m, int first_c,
                           const T* x,  // as dx, or null
                           T* dx) {     // [N,H,W,c_stride]
  const LanePlace<Tile> place;
#pragma unroll
  for (int i = 0; i < Tile::kTm; ++i) {
    const unsigned m = first_m + place.m(i);
    if (m >= pixel_class.pixels(p.n)) continue;
    int n, h, w;
    pixel_class.locate(p, m, n, h, w);
    const size_t pixel = ((static_cast<size_t>(n) * p.h + h) * p.w + w) * p.c_stride;
#pragma unroll
    for (int g = 0; g < Tile::kTn; g += 4) {  // channels from C to c_stride have seen zeros only
      const int c = first_c + place.n(g);
      float v[4] = {acc[i][g], acc[i][g + 1], acc[i][g + 2], acc[i][g + 3]};
      if (x) gate4(x + pixel + c, v, p.c_stride - c, p.c_stride % 4 == 0, p.gate);
      store4(dx + pixel + c, v, p.c_stride - c, p.c_stride % 4 == 0, p.accumulate);
    }
  }
}

template <class T, class Tile, int V>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void conv2d_dgrad_smem_tile_kernel(
    const T* __restrict__ dy,  // [N,P,Q,K]
    const T* __restrict__ w,   // [K,R,S,C]
    const T* __restrict__ x,   // [N,H,W,c_stride] or null
    T* __restrict__ dx,        // [N,H,W,c_stride]
    const __grid_constant__ Conv2dShape p, const __grid_constant__ FastDivisor by_k) {
  __shared__ SmemSlices<Tile> smem;
  const PixelClass pixel_class(p, blockIdx.y);
  const int tiles_n =
      (p.c_stride + Tile::kN - 1) / Tile::kN;  // neighbouring blocks share their patches in L2
  const unsigned first_m = blockIdx.x / tiles_n * Tile::kM;
  const int first_c = blockIdx.x % tiles_n * Tile::kN;
  if (first_m >= pixel_class.pixels(p.n)) return;  // the grid is as large as the largest class

  const int taps_w = pixel_class.cols.taps, depth = pixel_class.rows.taps * taps_w * p.k;
  const PatchShape patch{p.p, p.q, p.k, p.k, taps_w, depth};
  const FastDivisor by_taps_w(max(taps_w, 1));
  PatchLoader<T, Tile, V, -1> a(dy, patch, by_k, by_taps_w);
#pragma unroll
  for (int pass = 0; pass < a.map.kPasses; ++pass) {
    const unsigned m = first_m + a.map.row(pass);
    if (m < pixel_class.pixels(p.n)) {
      int n, h, column;
      pixel_class.locate(p, m, n, h, column);
      a.set_pixel(pass, n, (h + p.pad_h - pixel_class.rows.remainder) / p.stride_h,
                  (column + p.pad_w - pixel_class.cols.remainder) / p.stride_w);
    } else {
      a.set_nothing(pass);
    }
  }
  TapLoader<T, Tile, V> b(w, p, pixel_class, by_k, by_taps_w, first_c, depth);
  float acc[Tile::kTm][Tile::kTn] = {};
  multiply<Tile, V, 0>(a, b, (depth + Tile::kDepth - 1) / Tile::kDepth, smem, acc);
  store_tile<T, Tile>(acc, p, pixel_class, first_m, first_c, x, dx);
}

// Pixels of the largest class.
long long class_pixels(const Conv2dProblem& p) {
  return 1LL * p.n * ceil_div(p.h, p.stride_h) * ceil_div(p.w, p.stride_w);
}

template <class T, class Tile, int V>
Plan<Conv2dDgrad::Args> plan_tile(const Conv2dProblem& p) {
  return make_plan<Conv2dDgrad::Args>(0, [p](const Conv2dDgrad::Args& a, void*, Stream stream) {
    const unsigned blocks = ceil_div(class_pixels(p), Tile::kM) * ceil_div(p.x_channels(), Tile::kN);
    const dim3 grid(blocks, p.stride_h * p.stride_w);
    conv2d_dgrad_smem_tile_kernel<T, Tile, V><<<grid, Tile::kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.w),
        p.dact != ActKind::kNone ? static_cast<const T*>(a.x) : nullptr, static_cast<T*>(a.dx),
        Conv2dShape(p), FastDivisor(p.k));
    check_launch("conv2d_dgrad_smem_tile_kernel");
  });
}

template <class T>
Plan<Conv2dDgrad::Args> plan(const Conv2dProblem& p, const Device& device) {
  constexpr int V = kVec16<T>;
  if (p.c % V != 0 || p.k % V != 0) return plan_tile<T, Small, 1>(p);
  const long long wide_blocks =
      ceil_div(class_pixels(p), Wide::kM) * ceil_div(p.x_channels(), Wide::kN) * p.stride_h * p.stride_w;
  if (p.x_channels() <= Narrow::kN) return plan_tile<T, Narrow, V>(p);
  if (wide_blocks < 2 * device.multiprocessors) return plan_tile<T, Small, V>(p);
  return plan_tile<T, Wide, V>(p);
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_smem_tile = {
    .name = "smem_tile",
    .supports =
        [](const Conv2dProblem& p, const Device& device) {
          const Support dtype = conv2d_supports_fp32_bf16(p, device);
          if (!dtype) return dtype;
          return Support::require(1LL * p.stride_h * p.stride_w <= 65535,
                                  "stride_h * stride_w must be below 65536");
        },
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p, device) : plan<float>(p, device);
        }};

}  // namespace kiln
