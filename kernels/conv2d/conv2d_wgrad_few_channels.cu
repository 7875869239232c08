// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c], dbias[k] = sum dy, few
// channels c.
//
// The time is dy's, which is read once, from memory into registers. Rows of the product are output channels,
// columns (r,s,c), the sum runs over pixels. Which row of the product is which channel is free: with rows i
// and i+8 of product tile j as channels 2*kMT*i+2j and the next, a thread's share of a pixel is one load of
// 2*kMT channels, and a fragment is two pixels' words taken apart. Columns are gathered from the padded x
// tile (conv2d_few_channels.cuh); dbias is one more column, of ones. A block is persistent, owns up to 64
// channels x 32 columns and adds its warps' sums as a tree; blocks write fp32 partials that a second kernel
// adds in order. A warp takes 16 pixels at a time, at most 2048 in all, since tensor cores truncate their
// sums. Shared memory: pixel table, padded x, x as it came, later 32 KiB of sums. Needs bf16, c <= 8, k % 8
// == 0. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/common/early_launch.cuh"
#include "kernels/conv2d/conv2d_few_channels.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

constexpr int kChainPixels = 2048;  // that one warp adds up in the tensor cores

template <int kMTArg, int kNTArg>
struct WgradConfig {
  static constexpr int kMT = kMTArg;  // product tiles of 16 channels
  static constexpr int kNT = kNTArg;  // product tiles of 8 columns
  static constexpr int kChannels = 16 * kMT, kColumns = 8 * kNT;
  static constexpr int kBlocks = kMT == 4 ? 2 : 3;  // a multiprocessor
  static constexpr int kSumBytes = kFewWarps / 2 * kMT * kNT * 4 * 32 * 4;
  static_assert(kMT == 2 || kMT == 4, "a thread loads 8 or 16 bytes of a pixel");
};

template <class Config>
struct WgradSums {
  float v[Config::kMT][Config::kNT][4];
};

// A thread's channels of its four pixels of sixteen: 2i, 2i+1, 2i+8 and 2i+9 for lane i of four.
template <class Config>
struct Gradients {
  union Words {
    Vec<uint32_t, Config::kMT> vec;
    uint32_t v[Config::kMT];
  } pixel[4];
};

// `from`: this lane's channels of the tile's first pixel. Zeros from the tile's `pixels`th on.
template <class Config>
__device__ __forceinline__ void load_gradients(Gradients<Config>& to, const bf16* __restrict__ from,  // [,K]
                                               int k, int pixels, int step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int pixel = step * 16 + threadIdx.x % 4 * 2 + i % 2 + i / 2 * 8;
    if (pixel < pixels) {
      to.pixel[i].vec = Vec<uint32_t, Config::kMT>::load(reinterpret_cast<const uint32_t*>(from + pixel * k));
    } else {
#pragma unroll
      for (int j = 0; j < Config::kMT; ++j) to.pixel[i].v[j] = 0;
    }
  }
}

// This lane's column in each product tile: where in a patch it lies, in bytes, or a constant.
template <class Config>
struct WgradColumns {
  int offset[Config::kNT];
  int ones = -1;  // the tile where it is the column of ones behind the last

  __device__ __forceinline__ WgradColumns(const FewShape& g, int first_column) {
    const int width = g.s * g.c;
#pragma unroll
    for (int i = 0; i < Config::kNT; ++i) {
      const int column = first_column + i * 8 + threadIdx.x % 32 / 4;
      offset[i] = column < g.r * width ? (column / width * g.x_pitch + column % width) * 2 : 0;
      if (column == g.r * width) ones = i;
    }
  }
};

// Adds sixteen pixels. `table`: where this lane's first pixel of x begins.
template <class Config>
__device__ __forceinline__ void multiply(WgradSums<Config>& sums, const Gradients<Config>& dy,
                                         const WgradColumns<Config>& columns, const unsigned char* padded,
                                         const int* table) {
  const int2 low = *reinterpret_cast<const int2*>(table), high = *reinterpret_cast<const int2*>(table + 8);
  const auto pair = [&](int first, int second) -> uint32_t {
    return *reinterpret_cast<const unsigned short*>(padded + first) |
           static_cast<uint32_t>(*reinterpret_cast<const unsigned short*>(padded + second)) << 16;
  };
  uint32_t a[Config::kMT][4];
#pragma unroll
  for (int i = 0; i < Config::kMT; ++i) {
    const uint32_t p0 = dy.pixel[0].v[i], p1 = dy.pixel[1].v[i], p8 = dy.pixel[2].v[i], p9 = dy.pixel[3].v[i];
    a[i][0] = __byte_perm(p0, p1, 0x5410), a[i][1] = __byte_perm(p0, p1, 0x7632);
    a[i][2] = __byte_perm(p8, p9, 0x5410), a[i][3] = __byte_perm(p8, p9, 0x7632);
  }
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const int at = columns.offset[j];
    uint32_t b0 = pair(low.x + at, low.y + at), b1 = pair(high.x + at, high.y + at);
    if (columns.ones == j) b0 = b1 = 0x3f803f80u;
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) mma_bf16(sums.v[i][j], a[i], b0, b1);
  }
}

// Adds the warps' sums, half of them to the other half at a time; warp 0 gets them.
template <class Config>
__device__ __forceinline__ void add_warps_sums(WgradSums<Config>& sums, float* scratch) {
  constexpr int kCount = Config::kMT * Config::kNT * 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* mine = &sums.v[0][0][0];
  for (int half = kFewWarps / 2; half > 0; half /= 2) {
    __syncthreads();  // nobody reads shared memory any more
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) scratch[((warp - half) * kCount + i) * 32 + lane] = mine[i];
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) mine[i] += scratch[(warp * kCount + i) * 32 + lane];
    }
  }
}

template <class Config>
__device__ __forceinline__ void store_sums(const WgradSums<Config>& sums, const FewShape& g, int first_k,
                                           int first_column,
                                           float* __restrict__ dw,       // [K,R,S,C]
                                           float* __restrict__ dbias) {  // [K] or null
  const int lane = threadIdx.x % 32, count = g.r * g.s * g.c;
#pragma unroll
  for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kNT; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = first_k + lane / 4 * 2 * Config::kMT + 2 * i + e / 2;
        const int column = first_column + j * 8 + lane % 4 * 2 + e % 2;
        if (k >= g.k) continue;
        if (column < count) dw[k * count + column] = sums.v[i][j][e];
        if (column == count && dbias) dbias[k] = sums.v[i][j][e];
      }
    }
  }
}

template <class Config>
__global__ __launch_bounds__(kFewThreads, Config::kBlocks) void conv2d_wgrad_few_channels_kernel(
    const bf16* __restrict__ dy,        // [N,P,Q,K]
    const bf16* __restrict__ x,         // [N,H,W,c_stride]
    float* __restrict__ partial,        // [splits,K,R,S,C]
    float* __restrict__ partial_dbias,  // [splits,K] or null
    const __grid_constant__ FewShape g) {
  let_next_start();
  extern __shared__ __align__(128) unsigned char smem[];
  auto* table = reinterpret_cast<int*>(smem);
  unsigned char* padded = reinterpret_cast<unsigned char*>(table + (g.pixels + 15) / 16 * 16);
  auto* raw = reinterpret_cast<bf16*>(padded + g.copy_bytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k_slices = (g.k + Config::kChannels - 1) / Config::kChannels;
  const int first_k = blockIdx.x % k_slices * Config::kChannels;
  const int first_column = blockIdx.x / k_slices * Config::kColumns;
  const int lane_k = first_k + lane / 4 * 2 * Config::kMT;
  const bf16* dy_lane = dy + lane_k;
  // The tile's pixels as this lane has to load them: none, where its channels do not exist.
  const auto pixels_of = [&](const FewTile& tile) { return lane_k < g.k ? tile.pixels : 0; };

  int next = blockIdx.y;
  const FewTile first = few_tile(g, next);
  few_copy(g, first, x, raw);
  const bf16* from = dy_lane + static_cast<size_t>(first.first_pixel) * g.k;
  int loads = pixels_of(first);
  Gradients<Config> gradients;
  load_gradients<Config>(gradients, from, g.k, loads, warp);
  few_pixel_table<1>(g, table);
  const WgradColumns<Config> columns(g, first_column);
  WgradSums<Config> sums = {};
  while (next < g.tiles) {
    const FewTile tile = few_tile(g, next);
    cp_async_wait<0>();
    __syncthreads();  // x has arrived for all, the padded tile of before has been read by all
    few_spread<1>(g, tile, raw, padded);
    __syncthreads();  // the padded tile is complete, x as it came is free
    next += gridDim.y;
    const bf16* next_from = from;
    int next_loads = 0;
    if (next < g.tiles) {
      const FewTile after = few_tile(g, next);
      few_copy(g, after, x, raw);
      next_from = dy_lane + static_cast<size_t>(after.first_pixel) * g.k;
      next_loads = pixels_of(after);
    }
    for (int step = warp; step * 16 < tile.pixels; step += kFewWarps) {
      const Gradients<Config> now = gradients;
      const bool last = (step + kFewWarps) * 16 >= tile.pixels;
      load_gradients<Config>(gradients, last ? next_from : from, g.k, last ? next_loads : loads,
                             last ? warp : step + kFewWarps);
      multiply<Config>(sums, now, columns, padded, table + step * 16 + lane % 4 * 2);
    }
    // Warps without a pixel in this tile have not loaded the next one's.
    if (warp * 16 >= tile.pixels) load_gradients<Config>(gradients, next_from, g.k, next_loads, warp);
    from = next_from;
    loads = next_loads;
  }
  add_warps_sums<Config>(sums, reinterpret_cast<float*>(smem));
  if (warp == 0) {
    store_sums<Config>(sums, g, first_k, first_column,
                       partial + static_cast<size_t>(blockIdx.y) * g.k * g.r * g.s * g.c,
                       partial_dbias ? partial_dbias + static_cast<size_t>(blockIdx.y) * g.k : nullptr);
  }
}

template <class Config>
int smem_bytes(const FewShape& g) {
  return std::max(few_smem_bytes(g, 1), Config::kSumBytes);
}

template <class Config>
int slices(const Conv2dProblem& p) {
  return ceil_div(p.k, Config::kChannels) * ceil_div(p.r * p.s * p.c + p.bias, Config::kColumns);
}

template <class Config>
int places(const Conv2dProblem& p, const Device& device) {
  return std::max(1, device.multiprocessors * Config::kBlocks / slices<Config>(p));
}

template <class Config>
int best_rows(const Conv2dProblem& p, const Device& device) {
  return few_best_rows(p, places<Config>(p, device),
                       static_cast<int>(device.smem_per_block) / Config::kBlocks - 1024, smem_bytes<Config>);
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device, int rows) {
  const FewShape g = few_shape(p, rows ? rows : best_rows<Config>(p, device));
  const int bytes = smem_bytes<Config>(g), outputs = p.k * p.r * p.s * p.c;
  const auto kernel = conv2d_wgrad_few_channels_kernel<Config>;
  // The most there is: the limit is the kernel's, and other plans of it may need more than this one.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.smem_per_block)),
             "conv2d_wgrad_few_channels: shared memory");
  const int warp_pixels = ceil_div(g.pixels, 16 * kFewWarps) * 16;  // of a tile
  const int most_tiles = std::max(1, kChainPixels / warp_pixels);   // of a block
  const int splits = std::min(g.tiles, std::max(places<Config>(p, device), ceil_div(g.tiles, most_tiles)));
  const dim3 grid(slices<Config>(p), splits);
  const size_t dw_bytes = ceil_div<size_t>(static_cast<size_t>(splits) * outputs * sizeof(float), 256) * 256;
  const size_t dbias_bytes = p.bias ? static_cast<size_t>(splits) * p.k * sizeof(float) : 0;
  return make_plan<Conv2dWgrad::Args>(
      splits > 1 ? dw_bytes + dbias_bytes : 0, [=](const Conv2dWgrad::Args& a, void* scratch, Stream stream) {
        auto* dw = static_cast<float*>(a.dw);
        auto* dbias = static_cast<float*>(a.dbias);
        float* partial = splits > 1 ? static_cast<float*>(scratch) : dw;
        float* partial_dbias = splits > 1 && dbias ? partial + dw_bytes / sizeof(float) : dbias;
        kernel<<<grid, kFewThreads, bytes, cuda_stream(stream)>>>(
            static_cast<const bf16*>(a.dy), static_cast<const bf16*>(a.x), partial, partial_dbias, g);
        check_launch("conv2d_wgrad_few_channels_kernel");
        if (splits == 1) return;
        sum_splits(partial, splits, outputs, dw, stream);
        if (dbias) sum_splits(partial_dbias, splits, g.k, dbias, stream);
      });
}

// Calls f with the Config of the problem.
template <class F>
auto with_config(const Conv2dProblem& p, const F& f) {
  const bool narrow = p.r * p.s * p.c + p.bias <= 16;
  if (p.k <= 32) return narrow ? f(WgradConfig<2, 2>()) : f(WgradConfig<2, 4>());
  return narrow ? f(WgradConfig<4, 2>()) : f(WgradConfig<4, 4>());
}

bool fits(const Conv2dProblem& p, const Device& device, int rows) {
  return few_smem_bytes(few_shape(p, rows), 1) <= static_cast<int>(device.smem_per_block);
}

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support s = few_supports(p, device); !s) return s;
  return Support::require(fits(p, device, 1), kFewTooWide);
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_few_channels = {
    .name = "few_channels",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const int rows = few_config_rows(config);
          if (!fits(p, device, std::max(rows, 1))) fail_usage("these rows do not fit into shared memory");
          return with_config(p, [&]<class Config>(Config) { return plan_for<Config>(p, device, rows); });
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          const int best = with_config(p, [&]<class Config>(Config) { return best_rows<Config>(p, device); });
          return few_configs(best, p.p(), [&](int rows) {
            return few_shape(p, rows).pixels <= kFewPixels && fits(p, device, rows);
          });
        },
    .preferred = few_preferred};

}  // namespace kiln
