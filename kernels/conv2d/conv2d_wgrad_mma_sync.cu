// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c], on tensor cores.
//
// Implicit GEMM whose sum runs over output pixels: rows are output channels, columns (r,s,c) flattened. Both
// tiles lie in shared memory with pixels as rows and are transposed by ldmatrix (bf16) or read element by
// element (fp32, multiplied as tf32). Pixels are split over blocks so that they are whole waves; each split
// writes fp32 partial sums to the workspace and a second kernel adds them in fixed order. A block: 128 x 128
// or 64 x 192 outputs, eight warps, four cp.async stages, 64 KiB of shared memory. Needs channels in
// multiples of 16 bytes, no dbias. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/early_launch.cuh"
#include "kernels/conv2d/conv2d_mma_sync.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

template <class T>
using Square = MmaConfig<T, 128, 128, 2, 4>;
template <class T>
using Flat = MmaConfig<T, 64, 192, 2, 4>;
constexpr int kBlocks = 2;            // on a multiprocessor
constexpr int kShortestChain = 2048;  // see longest_chain
constexpr int kSumSteps = 12;         // see choose_split: a wave's sums, moved at the rate of a copy

struct WgradShape {
  int pixels, pixels_per_split;  // N*P*Q; a multiple of kBK
  int p, q, h, w;                // output and input map
  int k, c, x_stride;            // channels; channels from one pixel of x to the next
  int columns;                   // R*S*C
  int s;                         // filter width
  int stride_h, stride_w, pad_h, pad_w;
};

// What one thread copies: pixel row threadIdx.x / kRowThreads of both tiles, every kRowThreads-th chunk of
// it.
template <class Config>
struct WgradColumns {
  static constexpr int kRowThreads = Config::kThreads / Config::kBK;
  static constexpr int kA = Config::kBM / Config::kV / kRowThreads;
  static constexpr int kB = Config::kBN / Config::kV / kRowThreads;
  static_assert(kA * kRowThreads * Config::kV == Config::kBM && kB * kRowThreads * Config::kV == Config::kBN,
                "a row's threads copy as many chunks each");
  int r[kB], s[kB], c[kB];  // tap and channel of each chunk of B; c < 0 beyond the last column
};

template <class Config>
__device__ __forceinline__ WgradColumns<Config> wgrad_columns(const WgradShape& g, int first_column) {
  using Columns = WgradColumns<Config>;
  Columns columns;
#pragma unroll
  for (int i = 0; i < Columns::kB; ++i) {
    const int chunk = threadIdx.x % Columns::kRowThreads + Columns::kRowThreads * i;
    const int j = first_column + chunk * Config::kV, tap = j / g.c;
    columns.r[i] = tap / g.s;
    columns.s[i] = tap % g.s;
    columns.c[i] = j < g.columns ? j % g.c : -1;
  }
  return columns;
}

template <class Config>
__device__ __forceinline__ void wgrad_load_stage(const WgradShape& g, const WgradColumns<Config>& columns,
                                                 const typename Config::T* __restrict__ dy,
                                                 const typename Config::T* __restrict__ x, uint32_t a_tile,
                                                 uint32_t b_tile, int first_k, int pixel, int pixel_end) {
  using Columns = WgradColumns<Config>;
  using ATile = OperandTile<Config, true, Config::kBM>;
  using BTile = OperandTile<Config, true, Config::kBN>;
  const int row = threadIdx.x / Columns::kRowThreads, first_chunk = threadIdx.x % Columns::kRowThreads;
  pixel += row;
  const bool real = pixel < pixel_end;
#pragma unroll
  for (int i = 0; i < Columns::kA; ++i) {
    const int chunk = first_chunk + Columns::kRowThreads * i, k = first_k + chunk * Config::kV;
    const bool inside = real && k < g.k;
    cp_async16(a_tile + ATile::offset(row, chunk), dy + (inside ? pixel * g.k + k : 0), inside);
  }
  const int image = pixel / (g.p * g.q), position = pixel % (g.p * g.q);
  const int h0 = position / g.q * g.stride_h - g.pad_h, w0 = position % g.q * g.stride_w - g.pad_w;
#pragma unroll
  for (int i = 0; i < Columns::kB; ++i) {
    const int h = h0 + columns.r[i], w = w0 + columns.s[i];
    const bool inside = real && columns.c[i] >= 0 && static_cast<unsigned>(h) < static_cast<unsigned>(g.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.w);
    const int offset = inside ? ((image * g.h + h) * g.w + w) * g.x_stride + columns.c[i] : 0;
    cp_async16(b_tile + BTile::offset(row, first_chunk + Columns::kRowThreads * i), x + offset, inside);
  }
}

template <class Config, class T = typename Config::T>
__global__ __launch_bounds__(Config::kThreads, kBlocks) void conv2d_wgrad_mma_sync_kernel(
    const T* __restrict__ dy,     // [N,P,Q,K]
    const T* __restrict__ x,      // [N,H,W,c_stride]
    float* __restrict__ partial,  // [splits,K,R,S,C]
    const __grid_constant__ WgradShape g) {
  let_next_start();
  extern __shared__ __align__(128) unsigned char smem[];
  const int first_column = blockIdx.x * Config::kBN, first_k = blockIdx.y * Config::kBM;
  const int warp_m = threadIdx.x / 32 / Config::kWarpsN, warp_n = threadIdx.x / 32 % Config::kWarpsN;
  const WgradColumns<Config> columns = wgrad_columns<Config>(g, first_column);
  Accumulators<Config> acc = {};

  int next = blockIdx.z * g.pixels_per_split;
  const int end = min(next + g.pixels_per_split, g.pixels);
  const int steps = (max(end - next, 0) + Config::kBK - 1) / Config::kBK;
  int loaded = 0;
  const auto load_next = [&] {
    if (loaded < steps) {
      const uint32_t a_tile = smem_address(smem) + loaded % Config::kStages * Config::kStageBytes;
      wgrad_load_stage<Config>(g, columns, dy, x, a_tile, a_tile + Config::kATileBytes, first_k, next, end);
      next += Config::kBK;
    }
    ++loaded;
    cp_async_commit();
  };
  for (int i = 0; i < Config::kStages - 1; ++i) load_next();
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Config::kStages - 2>();
    __syncthreads();  // the stage has arrived for all; the stage read in the step before may be overwritten
    load_next();
    const uint32_t a_tile = smem_address(smem) + step % Config::kStages * Config::kStageBytes;
    mma_stage<Config, true, true>(acc, a_tile, a_tile + Config::kATileBytes, warp_m, warp_n);
  }

  const int lane = threadIdx.x % 32;
  float* out = partial + static_cast<size_t>(blockIdx.z) * g.k * g.columns;
#pragma unroll
  for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kNT; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = first_k + warp_m * Config::kWM + i * 16 + half * 8 + lane / 4;
        const int column = first_column + warp_n * Config::kWN + j * 8 + 2 * (lane % 4);
        if (k < g.k && column < g.columns) {
          *reinterpret_cast<float2*>(out + static_cast<size_t>(k) * g.columns + column) =
              make_float2(acc.v[i][j][2 * half], acc.v[i][j][2 * half + 1]);
        }
      }
    }
  }
}

Support supports(const Conv2dProblem& p, const Device&) {
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.bias) return Support::no("dbias is not computed");
  if (p.k > 65535 * 64) return Support::no("output channels must be at most 65535 column tiles of 64");
  return mma_sync_takes(p);
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device) {
  WgradShape g = {.pixels = p.n * p.p() * p.q(),
                  .pixels_per_split = 0,
                  .p = p.p(),
                  .q = p.q(),
                  .h = p.h,
                  .w = p.w,
                  .k = p.k,
                  .c = p.c,
                  .x_stride = p.x_channels(),
                  .columns = p.r * p.s * p.c,
                  .s = p.s,
                  .stride_h = p.stride_h,
                  .stride_w = p.stride_w,
                  .pad_h = p.pad_h,
                  .pad_w = p.pad_w};
  const int tiles = ceil_div(g.columns, Config::kBN) * ceil_div(g.k, Config::kBM);
  const int outputs = g.k * g.columns;
  const int least = ceil_div(g.pixels, longest_chain(g.pixels, kShortestChain));
  const Split split = choose_split(g.pixels, Config::kBK, tiles, 1LL * kBlocks * device.multiprocessors,
                                   outputs, least, kSumSteps);
  g.pixels_per_split = split.length;
  const int splits = split.count;
  const dim3 grid(ceil_div(g.columns, Config::kBN), ceil_div(g.k, Config::kBM), splits);
  using T = typename Config::T;
  const auto kernel = conv2d_wgrad_mma_sync_kernel<Config>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kPipelineBytes),
      "conv2d_wgrad_mma_sync: shared memory");
  const size_t workspace = splits > 1 ? static_cast<size_t>(splits) * outputs * sizeof(float) : 0;
  return make_plan<Conv2dWgrad::Args>(
      workspace, [=](const Conv2dWgrad::Args& a, void* scratch, Stream stream) {
        float* dw = static_cast<float*>(a.dw);
        float* partial = splits > 1 ? static_cast<float*>(scratch) : dw;
        kernel<<<grid, Config::kThreads, Config::kPipelineBytes, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const T*>(a.x), partial, g);
        check_launch("conv2d_wgrad_mma_sync_kernel");
        if (splits > 1) sum_splits(partial, splits, outputs, dw, stream);
      });
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_mma_sync = {
    .name = "mma_sync",
    .supports = supports,
    .plan = [](const Conv2dProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      return mma_sync_with_type(p.dtype, [&]<class T>(T) {
        return p.k <= 64 ? plan_for<Flat<T>>(p, device) : plan_for<Square<T>>(p, device);
      });
    }};

}  // namespace kiln
