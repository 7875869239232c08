// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c];  dbias[k] = sum
// dy[n,p,q,k].
//
// The implicit GEMM of conv2d_wgrad_register_tile.cu in fp32 FMAs, fed by the copy engine, so that the warps
// issue FMAs and reads of shared memory and little else. A block owns 64 k x 192 columns of one range of
// pixels (blockIdx.y); a column is a channel under a tap, and boxes of kSpan channels of one tap make a tile.
// Four warps of 64 x 48 results, a thread 8 x 12. A step is 16 pixels: dy [16][64] as it lies, x gathered by
// im2col, [16][kSpan] a box; a ring of four steps, 64 KiB, three blocks a multiprocessor. A range's sum goes
// to the workspace and a second kernel adds the ranges in order; dbias is reduced the same way. Needs compute
// capability 9.0, fp32, C, c_stride and K in multiples of 4. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/conv2d/conv2d_register_tma.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

template <int Span>
struct WgradBoxes {
  static constexpr int kSpan = Span;  // channels of a box
  static constexpr int kM = 64, kN = 192, kDepth = 16, kBoxes = kN / kSpan;
  static constexpr int kTm = 8, kTn = 12, kThreads = 128, kBlocks = 3;
  static constexpr int kStages = 4, kStageFloats = (kM + kN) * kDepth;
  static constexpr int kStageBytes = kStageFloats * sizeof(float), kSmemBytes = kStages * kStageBytes;
  static_assert(kThreads / 32 == kStages, "in each turn of the ring a warp starts one step's copies");
  static_assert(kSpan % 16 == 0 && kN % kSpan == 0, "four lanes read 16 neighbouring columns of one box");
};

struct WgradBoxShape {
  int k, c, taps, s;  // output channels, channels, taps, those of a filter row
  int tap_boxes;      // boxes of a tap
  int column_tiles;   // of 192 columns
  int p, q, stride_h, stride_w, pad_h, pad_w;
  int pixels, split_pixels;  // of all, of a range
  FastDivisor by_p, by_q;
};

// A box of columns: its first channel, and its tap as a number and as row and column of the filter. A box
// beyond the last tap reads the first and is not stored.
struct Box {
  int c, tap, r, s;
};
__device__ __forceinline__ Box box_at(const WgradBoxShape& g, int box, int span) {
  const int tap = box / g.tap_boxes, read = tap < g.taps ? tap : 0;
  return {(box - tap * g.tap_boxes) * span, tap, read / g.s, read % g.s};
}

// acc += A^T * B of one step. Each row of results turns back where the last one ended, so that a value of B
// stays in the operand cache beside the row's of A.
template <class T>
__device__ __forceinline__ void accumulate_step(uint32_t a,                       // this lane's, [16][64]
                                                const uint32_t (&b)[T::kTn / 4],  // this lane's, [16][kSpan]
                                                float (&acc)[T::kTm][T::kTn]) {
#pragma unroll
  for (int d = 0; d < T::kDepth; ++d) {
    Vec<float, 4> am[T::kTm / 4], bn[T::kTn / 4];
#pragma unroll
    for (int i = 0; i < T::kTm / 4; ++i) am[i] = load_four(a + (d * T::kM + i * 32) * 4);
#pragma unroll
    for (int j = 0; j < T::kTn / 4; ++j) bn[j] = load_four(b[j] + d * T::kSpan * 4);
#pragma unroll
    for (int i = 0; i < T::kTm; ++i) {
#pragma unroll
      for (int n = 0; n < T::kTn; ++n) {
        const int j = i % 2 == 0 ? n : T::kTn - 1 - n;
        acc[i][j] = fmaf(am[i / 4].v[i % 4], bn[j / 4].v[j % 4], acc[i][j]);
      }
    }
  }
}

template <class T>
__global__ __launch_bounds__(T::kThreads, T::kBlocks) void conv2d_wgrad_register_tma_kernel(
    const __grid_constant__ CUtensorMap dy,  // [N*P*Q][K]
    const __grid_constant__ CUtensorMap x,   // [N,H,W,c_stride], gathered
    float* __restrict__ partial,             // [splits,K,R,S,C]
    const __grid_constant__ WgradBoxShape g) {
  let_next_start();
  extern __shared__ __align__(128) float ring[];  // kStages of dy [16][64], x [kBoxes][16][kSpan]
  __shared__ uint64_t barriers[T::kStages];
  __shared__ Box boxes[T::kBoxes];
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int first_k = blockIdx.x / g.column_tiles * T::kM;
  const int first_box = blockIdx.x % g.column_tiles * T::kBoxes;
  const int first_pixel = blockIdx.y * g.split_pixels, count = min(g.split_pixels, g.pixels - first_pixel);
  const int steps = (count + T::kDepth - 1) / T::kDepth;
  const uint32_t full = smem_address(barriers), slices = smem_address(ring);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) mbarrier_init(full + 8 * i, 1);
    fence_barrier_init();
  }
  if (threadIdx.x < T::kBoxes) boxes[threadIdx.x] = box_at(g, first_box + threadIdx.x, T::kSpan);
  __syncthreads();

  const auto load = [&](int step) {  // one thread; pixels beyond the last are zeros of dy
    const uint32_t barrier = full + step % T::kStages * 8, to = slices + step % T::kStages * T::kStageBytes;
    const int pixel = first_pixel + step * T::kDepth, row = g.by_q.divide(pixel), n = g.by_p.divide(row);
    const int h = (row - n * g.p) * g.stride_h - g.pad_h, w = (pixel - row * g.q) * g.stride_w - g.pad_w;
    mbarrier_arrive_expect(barrier, T::kStageBytes);
    tma_load_4d(to, &dy, barrier, first_k, pixel, 0, 0);
#pragma unroll
    for (int i = 0; i < T::kBoxes; ++i) {
      const Box box = boxes[i];
      tma_load_im2col(to + (T::kM + i * T::kSpan) * T::kDepth * sizeof(float), &x, barrier, box.c, w, h, n,
                      box.s, box.r);
    }
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages && i < steps; ++i) load(i);
  }

  // Lanes as in RegisterPlace: 8 along k, 4 along the columns.
  const int lane_m = (lane >> 1 & 3) | lane >> 4 << 2, lane_n = (lane & 1) | (lane >> 3 & 1) << 1;
  const int first_column = warp * T::kTn * 4 + lane_n * 4;
  uint32_t place[T::kTn / 4];  // of the lane's columns in a stage
#pragma unroll
  for (int j = 0; j < T::kTn / 4; ++j) {
    const int column = first_column + j * 16;
    place[j] = ((T::kM + column / T::kSpan * T::kSpan) * T::kDepth + column % T::kSpan) * sizeof(float);
  }
  float acc[T::kTm][T::kTn] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(full + step % T::kStages * 8, step / T::kStages & 1);
    const uint32_t stage = slices + step % T::kStages * T::kStageBytes;
    uint32_t b[T::kTn / 4];
#pragma unroll
    for (int j = 0; j < T::kTn / 4; ++j) b[j] = stage + place[j];
    accumulate_step<T>(stage + lane_m * 16, b, acc);
    __syncthreads();  // all have read the stage
    if (step + T::kStages < steps && warp == step % T::kStages && lane == 0) load(step + T::kStages);
  }

  float* out = partial + static_cast<size_t>(blockIdx.y) * g.k * g.taps * g.c;
#pragma unroll
  for (int j = 0; j < T::kTn; j += 4) {
    const int column = first_column + j * 4;
    const Box box = boxes[column / T::kSpan];
    const int c = box.c + column % T::kSpan;
    if (box.tap >= g.taps || c >= g.c) continue;
#pragma unroll
    for (int i = 0; i < T::kTm; ++i) {
      const int k = first_k + i / 4 * 32 + lane_m * 4 + i % 4;
      const Vec<float, 4> v{{acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]}};
      if (k < g.k) v.store(out + (static_cast<size_t>(k) * g.taps + box.tap) * g.c + c);
    }
  }
}

template <class T>
int column_tiles(const Conv2dProblem& p) {
  return ceil_div(p.r * p.s * ceil_div(p.c, T::kSpan), T::kBoxes);
}

template <class T>
Plan<Conv2dWgrad::Args> plan_boxes(const Conv2dProblem& p, const Device& device) {
  const int columns = p.r * p.s * p.c, pixels = p.n * p.p() * p.q();
  const unsigned tiles = ceil_div(p.k, T::kM) * column_tiles<T>(p);
  const Split split =
      choose_split(pixels, T::kDepth, tiles, T::kBlocks * device.multiprocessors, 1LL * p.k * columns);
  const size_t partial_floats = split.count > 1 ? static_cast<size_t>(split.count) * p.k * columns : 0;
  const Split rows =
      p.bias ? choose_split(pixels, 256, ceil_div(p.k, 32), 4 * device.multiprocessors, p.k) : Split{};
  const size_t row_floats = p.bias ? static_cast<size_t>(rows.count) * p.k : 0;
  const WgradBoxShape shape = {.k = p.k,
                               .c = p.c,
                               .taps = p.r * p.s,
                               .s = p.s,
                               .tap_boxes = ceil_div(p.c, T::kSpan),
                               .column_tiles = column_tiles<T>(p),
                               .p = p.p(),
                               .q = p.q(),
                               .stride_h = p.stride_h,
                               .stride_w = p.stride_w,
                               .pad_h = p.pad_h,
                               .pad_w = p.pad_w,
                               .pixels = pixels,
                               .split_pixels = split.length,
                               .by_p = FastDivisor(p.p()),
                               .by_q = FastDivisor(p.q())};
  const auto kernel = conv2d_wgrad_register_tma_kernel<T>;
  allow_shared_memory(kernel, T::kSmemBytes, "conv2d_wgrad_register_tma: shared memory");
  return Plan<Conv2dWgrad::Args>(
      sizeof(float) * (partial_floats + row_floats), [=](const Conv2dWgrad::Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const CUtensorMap dy =
            make_dense_map({.base = a.dy,
                            .element_bytes = 4,
                            .sizes = {static_cast<uint64_t>(p.k), static_cast<uint64_t>(pixels), 1, 1},
                            .box = {T::kM, T::kDepth, 1, 1}});
        Im2colMap gather = wgmma_im2col(p);
        gather.base = a.x;
        gather.channels = T::kSpan;
        gather.pixels = T::kDepth;
        gather.element_bytes = 4;
        gather.swizzled = false;
        const CUtensorMap x = make_im2col_map(gather);
        auto* partial = static_cast<float*>(workspace);
        auto* dw = static_cast<float*>(a.dw);
        return Bound([=](Stream stream) {
          kernel<<<dim3(tiles, split.count), T::kThreads, T::kSmemBytes, cuda_stream(stream)>>>(
              dy, x, split.count > 1 ? partial : dw, shape);
          check_launch("conv2d_wgrad_register_tma_kernel");
          if (split.count > 1) sum_splits(partial, split.count, p.k * columns, dw, stream);
          if (p.bias) {
            sum_rows(static_cast<const float*>(a.dy), pixels, p.k, rows, partial + partial_floats,
                     static_cast<float*>(a.dbias), stream);
          }
        });
      });
}

using Wide = WgradBoxes<64>;
using Fine = WgradBoxes<32>;

int fewest_tiles(const Conv2dProblem& p) { return std::min(column_tiles<Wide>(p), column_tiles<Fine>(p)); }

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_register_tma = {
    .name = "register_tma",
    .supports =
        [](const Conv2dProblem& p, const Device& device) {
          if (p.x_channels() % 4 != 0) return Support::no("cs must be a multiple of 4");
          if (p.k % 4 != 0) return Support::no("output channels must be a multiple of 4");
          return register_tma_supports(p, device);
        },
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          if (config == "c64") return plan_boxes<Wide>(p, device);
          if (config == "c32") return plan_boxes<Fine>(p, device);
          if (!config.empty())
            fail_usage("conv2d: unknown config '" + std::string(config) +
                       "' of register_tma; known: c64 c32");
          return column_tiles<Fine>(p) < column_tiles<Wide>(p) ? plan_boxes<Fine>(p, device)
                                                               : plan_boxes<Wide>(p, device);
        },
    .configs =
        [](const Conv2dProblem&, const Device&) {
          return std::vector<std::string>{"c64", "c32"};
        },
    // Where little of the tiles is padding that register_tile's smallest tile has not.
    .preferred =
        [](const Conv2dProblem& p, const Device&) {
          const int columns = p.r * p.s * p.c;
          return p.k > 32 && 1.0 * fewest_tiles(p) * Wide::kN <= 1.05 * ceil_div(columns, 64) * 64;
        }};

}  // namespace kiln
