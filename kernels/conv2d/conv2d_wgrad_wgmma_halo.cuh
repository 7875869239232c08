// wgrad of a 3x3 filter, stride 1, with the nine taps reading one copy of x (sm_90a):
//
//   partial[split][k,r,s,c] = sum over the split's images n and pixels p,q of dy[n,p,q,k] *
//                             x[n, p+r-ph, q+s-pw, c]
//
// The summed pixels are walked by map rows, each kept `row_pixels` long, a multiple of 16: pixels beyond the
// map are zeros of dy, which the copy engine writes. A stage of the ring holds `rows` rows of x and the rows
// of dy two rows above: all that x's last row and the two before it, which are in the ring still, are needed
// for. Consumer warpgroup r owns filter row r: 64 output channels x 3 filter columns x kSpan input channels,
// dy's row p against x's row p + r. Filter columns are three copies of x's rows, each displaced by one pixel
// (kCopies), or one copy that is three operand blocks one pixel apart: the swizzle goes by address, so a
// block may start at any pixel. Each pixel of x is copied to shared memory three times or once, not nine
// times. Deterministic.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

namespace kiln {

template <int kSpan_, bool kCopies_, int kStages_>
struct WgradHaloConfig {
  static constexpr int kSpan = kSpan_, kStages = kStages_;
  static constexpr bool kCopies = kCopies_;
  static constexpr int kFilter = 3;  // its side; a warpgroup a row
  static constexpr int kN = kFilter * kSpan;
  static constexpr int kPixels = 64;  // most pixels of dy in a stage
  static constexpr int kLoads = kCopies ? kFilter : 1;
  static constexpr int kThreads = (kFilter + 1) * 128;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kPixelBytes = kSpan * 2;
  static constexpr int kDyBytes = kPixels * 64 * 2;
  // One copy's rows are two pixels longer: at most four rows of 16 + 2.
  static constexpr int kCopyBytes =
      kCopies ? kPixels * kPixelBytes : (72 * kPixelBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kBlockBytes =
      kCopies ? kCopyBytes : kPixelBytes;  // from one filter column to the next
  static constexpr int kStageBytes = kDyBytes + kLoads * kCopyBytes;
  static constexpr int kSmemBytes = kStages * kStageBytes + 2 * kStages * 8 + kAlignment;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 152;
  static_assert(kStageBytes % kAlignment == 0 && kCopyBytes % kAlignment == 0,
                "tiles start a swizzle pattern");
  static_assert(kStages >= 5, "three stages are in use while others fill");
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

struct WgradHaloShape {
  int images, images_per_split;
  int p;  // output rows
  int pad_h, pad_w;
  int k, c;             // channels
  int columns;          // 9*C
  int row_pixels;       // of a row of dy in shared memory: 16, 32, 48 or 64
  int x_row_pixels;     // of a row of x: row_pixels, two more without copies
  int rows;             // map rows of a stage: 64 / row_pixels
  int back;             // stages before the newest that are still read: 2 / rows rounded up
  int stages_an_image;  // (p + 2) / rows rounded up
};

template <class Config>
struct WgradHaloSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t dy(int stage) const { return base + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t x(int stage) const { return dy(stage) + Config::kDyBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + Config::kStages * Config::kStageBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
};

// The producer thread: stage i of an image gets x's rows i*rows - pad_h on and dy's rows i*rows - 2 on; rows
// and pixels outside of the maps arrive as zeros.
template <class Config>
__device__ __forceinline__ void wgrad_halo_produce(const CUtensorMap* dy, const CUtensorMap* x,
                                                   WgradHaloSmem<Config> smem, int first_k, int c0,
                                                   int first_image, int images, const WgradHaloShape& g) {
  const uint32_t bytes =
      g.rows * (g.row_pixels * 128 + Config::kLoads * g.x_row_pixels * Config::kPixelBytes);
  tma_prefetch_map(dy);
  tma_prefetch_map(x);
  RingPosition<Config::kStages> at;
  for (int image = first_image; image < first_image + images; ++image) {
    for (int row = 0; row < g.stages_an_image * g.rows; row += g.rows, at.advance()) {
      mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
      mbarrier_arrive_expect(smem.full(at.stage), bytes);
      tma_load_4d(smem.dy(at.stage), dy, smem.full(at.stage), first_k, 0, row - 2, image);
#pragma unroll
      for (int s = 0; s < Config::kLoads; ++s) {
        tma_load_4d(smem.x(at.stage) + s * Config::kCopyBytes, x, smem.full(at.stage), c0, s - g.pad_w,
                    row - g.pad_h, image);
      }
    }
  }
}

// Starts warpgroup r's products of the stage whose first row of dy is output row `first_p`.
template <class Config>
__device__ __forceinline__ void wgrad_halo_multiply(float (&acc)[Config::kN / 2], WgradHaloSmem<Config> smem,
                                                    int stage, int first_p, int r, const WgradHaloShape& g) {
  const int end = min(g.rows, g.p - first_p);
  for (int j = max(0, -first_p); j < end; ++j) {
    int x_row = j + r - 2, x_stage = stage;  // counted from the stage's first row of x
    while (x_row < 0) {
      x_row += g.rows;
      x_stage = x_stage == 0 ? Config::kStages - 1 : x_stage - 1;
    }
    uint32_t a = smem.dy(stage) + j * g.row_pixels * 128;
    uint32_t b = smem.x(x_stage) + x_row * g.x_row_pixels * Config::kPixelBytes;
    for (int q = 0; q < g.row_pixels; q += 16, a += 16 * 128, b += 16 * Config::kPixelBytes) {
      wgmma_fence();
      Wgmma<Config::kN, 1, 1>::multiply(acc, mn_major_descriptor<64>(a, Config::kDyBytes),
                                        mn_major_descriptor<Config::kSpan>(b, Config::kBlockBytes), 1);
    }
  }
}

// Writes warpgroup r's sums.
template <class Config>
__device__ __forceinline__ void wgrad_halo_store(const float (&acc)[Config::kN / 2], int r, int first_k,
                                                 int c0,
                                                 float* __restrict__ out,  // [K,3,3,C]
                                                 const WgradHaloShape& g) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int k = first_k + warp * 16 + half * 8 + lane / 4;
    float* row = out + static_cast<size_t>(k) * g.columns + r * Config::kFilter * g.c + c0 + 2 * (lane % 4);
#pragma unroll
    for (int s = 0; s < Config::kFilter; ++s) {
#pragma unroll
      for (int j = 0; j < Config::kSpan / 8; ++j) {
        const float* v = &acc[(s * Config::kSpan / 8 + j) * 4 + 2 * half];
        if (k < g.k && c0 + j * 8 < g.c) {
          *reinterpret_cast<float2*>(row + s * g.c + j * 8) = make_float2(v[0], v[1]);
        }
      }
    }
  }
}

// Consumer warpgroup r. A stage is given back when `back` later ones have been multiplied.
template <class Config>
__device__ __forceinline__ void wgrad_halo_consume(WgradHaloSmem<Config> smem, int first_k, int c0,
                                                   int images, float* out, const WgradHaloShape& g) {
  const int r = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  float acc[Config::kN / 2] = {};
  RingPosition<Config::kStages> at;
  int before_release = g.back + 1, release = 0;
  for (int image = 0; image < images; ++image) {
    for (int i = 0; i < g.stages_an_image; ++i) {
      mbarrier_wait(smem.full(at.stage), at.parity);
      pin_registers(acc);
      wgrad_halo_multiply<Config>(acc, smem, at.stage, i * g.rows - 2, r, g);
      wgmma_commit();
      wgmma_wait<1>();  // the products of the stage before are done: the last stage they alone needed is free
      if (before_release > 0) {
        --before_release;
      } else {
        if (lane == 0) mbarrier_arrive(smem.empty(release));
        release = release + 1 == Config::kStages ? 0 : release + 1;
      }
      at.advance();
    }
  }
  wgmma_wait<0>();
  pin_registers(acc);
  wgrad_halo_store<Config>(acc, r, first_k, c0, out, g);
}

// blockIdx: x slice of input channels, y 64 output channels, z split.
template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_wgrad_halo_wgmma_kernel(
    const __grid_constant__ CUtensorMap dy,  // [N,P,Q,K]
    const __grid_constant__ CUtensorMap x,   // [N,H,W,c_stride]
    float* __restrict__ partial,             // [splits,K,3,3,C]
    const __grid_constant__ WgradHaloShape g) {
  extern __shared__ unsigned char raw[];
  const WgradHaloSmem<Config> smem = {(smem_address(raw) + Config::kAlignment - 1) / Config::kAlignment *
                                      Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kFilter * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  let_next_start();
  const int first_k = blockIdx.y * 64, c0 = blockIdx.x * Config::kSpan;
  const int first_image = blockIdx.z * g.images_per_split;
  const int images = min(g.images - first_image, g.images_per_split);
  if (threadIdx.x / 128 == Config::kFilter) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) {
      wgrad_halo_produce<Config>(&dy, &x, smem, first_k, c0, first_image, images, g);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    wgrad_halo_consume<Config>(smem, first_k, c0, images,
                               partial + static_cast<size_t>(blockIdx.z) * g.k * g.columns, g);
  }
}

}  // namespace kiln
