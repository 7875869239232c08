// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], few channels c,
// and with the epilogue of conv2d_epilogue.cuh.
//
// The time is y's: x and w are small, and y is written once, straight from the accumulators. Rows of the
// product are pixels, columns output channels, the sum runs over r and then (s,c), the S*C terms of a filter
// row padded to an even number, so that two neighbouring terms are one 32-bit read from the padded x tile
// (conv2d_few_channels.cuh). Which column of the product is which channel is free: with column 2i+e of
// product tile j as channel 8i+2j+e a thread ends up with eight channels in a row, a 16-byte store. A block
// is persistent and keeps the filter of 32 or 64 channels in registers; a warp owns 16 pixels at a time.
// Shared memory: pixel table, two copies of padded x, x as it came, bias; about 24 KiB at 32 x 32 x 3. Needs
// bf16, c <= 8, k % 8 == 0, at most 160 terms. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_few_channels.cuh"

namespace kiln {
namespace {

template <int kStepsArg, int kGroupsArg>
struct FwdConfig {
  static constexpr int kSteps = kStepsArg;    // of 16 terms
  static constexpr int kGroups = kGroupsArg;  // of 32 channels
  static constexpr int kChannels = 32 * kGroups;
  static constexpr int kBlocks = kSteps > 5 ? 1 : kGroups == 1 && kSteps <= 2 ? 3 : 2;  // a multiprocessor
  static_assert(kSteps * kGroups <= 10, "the filter must fit into registers");
};

template <class Config>
struct FwdFilter {
  uint32_t v[Config::kSteps][Config::kGroups * 4][2];
};

// Terms of a filter row with their padding.
__device__ __forceinline__ int row_terms(const FewShape& g) { return (g.s * g.c + 1) / 2 * 2; }

template <class Config>
__device__ __forceinline__ void load_filter(FwdFilter<Config>& b, const FewShape& g,
                                            const bf16* __restrict__ w,  // [K,R,S,C]
                                            int first_k) {
  const auto* bits = reinterpret_cast<const unsigned short*>(w);
  const int lane = threadIdx.x % 32, column = lane / 4, width = row_terms(g), real = g.s * g.c;
#pragma unroll
  for (int step = 0; step < Config::kSteps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int term = step * 16 + half * 8 + lane % 4 * 2, r = term / width, j = term % width;
#pragma unroll
      for (int tile = 0; tile < Config::kGroups * 4; ++tile) {
        const int k = first_k + tile / 4 * 32 + column / 2 * 8 + tile % 4 * 2 + column % 2;
        const bool inside = k < g.k && r < g.r;
        const int at = (k * g.r + r) * real + j;
        const uint32_t low = inside ? bits[at] : 0, high = inside && j + 1 < real ? bits[at + 1] : 0;
        b.v[step][tile][half] = low | high << 16;
      }
    }
  }
}

// Where in a patch this lane's pairs of terms lie, in bytes, and which of their bits are terms at all.
template <class Config>
struct FwdPairs {
  int offset[2 * Config::kSteps];
  uint32_t mask[2 * Config::kSteps];

  __device__ __forceinline__ explicit FwdPairs(const FewShape& g) {
    const int width = row_terms(g), real = g.s * g.c;
#pragma unroll
    for (int i = 0; i < 2 * Config::kSteps; ++i) {
      const int term = i * 8 + threadIdx.x % 4 * 2, r = term / width, j = term % width;
      offset[i] = r < g.r ? (r * g.x_pitch + j) * 2 : 0;
      mask[i] = r >= g.r ? 0u : j + 1 < real ? 0xffffffffu : 0xffffu;
    }
  }
};

template <class Config>
struct FwdSums {
  float v[Config::kGroups * 4][4];
};

// The sums of pixels `row` and `row + 8` of a warp's sixteen; `patch` and `patch8` are where they begin.
template <class Config>
__device__ __forceinline__ void multiply(FwdSums<Config>& sums, const FwdFilter<Config>& b,
                                         const FwdPairs<Config>& pairs, const unsigned char* patch,
                                         const unsigned char* patch8) {
  const auto pair = [&](const unsigned char* from, int i) {
    return *reinterpret_cast<const uint32_t*>(from + pairs.offset[i]) & pairs.mask[i];
  };
#pragma unroll
  for (int step = 0; step < Config::kSteps; ++step) {
    const uint32_t a[4] = {pair(patch, 2 * step), pair(patch8, 2 * step), pair(patch, 2 * step + 1),
                           pair(patch8, 2 * step + 1)};
#pragma unroll
    for (int tile = 0; tile < Config::kGroups * 4; ++tile) {
      mma_bf16(sums.v[tile], a, b.v[step][tile][0], b.v[step][tile][1]);
    }
  }
}

// Eight channels of one pixel: elements `half` * 2 and the next of four product tiles.
template <class Config>
__device__ __forceinline__ void store_channels(const FwdSums<Config>& sums, int group, int half, bf16* y) {
  Vec<bf16, 8> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.set(2 * i, sums.v[group * 4 + i][half * 2]);
    out.set(2 * i + 1, sums.v[group * 4 + i][half * 2 + 1]);
  }
  out.store(y);
}

// The same behind an epilogue; `at`: their first element in y, `k` their first channel.
template <class Config>
__device__ __forceinline__ void store_fused_channels(const FwdSums<Config>& sums, int group, int half,
                                                     const Conv2dEpilogue& e, int k, int at, bf16* y) {
  Vec<bf16, 8> joined{}, out;
  if (e.residual) joined = Vec<bf16, 8>::load(static_cast<const bf16*>(e.residual) + at);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* v = &sums.v[group * 4 + i][half * 2];
    const float2 scale = e.scale_pair(k + 2 * i), bias = e.bias_pair(k + 2 * i);
    out.set(2 * i, e.finish(v[0], scale.x, bias.x, joined[2 * i]));
    out.set(2 * i + 1, e.finish(v[1], scale.y, bias.y, joined[2 * i + 1]));
  }
  out.store(y + at);
}

// Blocks of a multiprocessor that registers are kept for: an epilogue beside this much filter leaves one.
template <class Config, bool kFused>
constexpr int kFwdBlocks = kFused&& Config::kSteps == 3 && Config::kGroups == 2 ? 1 : Config::kBlocks;

template <class Config, bool kFused>
__global__ __launch_bounds__(kFewThreads, (kFwdBlocks<Config, kFused>)) void conv2d_fwd_few_channels_kernel(
    const bf16* __restrict__ x,      // [N,H,W,c_stride]
    const bf16* __restrict__ w,      // [K,R,S,C]
    const float* __restrict__ bias,  // [K] or null; of the plain kernel alone
    bf16* __restrict__ y,            // [N,P,Q,K]
    const __grid_constant__ Conv2dEpilogue epilogue, const __grid_constant__ FewShape g) {
  extern __shared__ __align__(128) unsigned char smem[];
  auto* bias_tile = reinterpret_cast<float*>(smem);  // [kChannels]
  auto* table = reinterpret_cast<int*>(bias_tile + Config::kChannels);
  unsigned char* padded = reinterpret_cast<unsigned char*>(table + (g.pixels + 15) / 16 * 16);
  auto* raw = reinterpret_cast<bf16*>(padded + 2 * g.copy_bytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_k = blockIdx.y * Config::kChannels;

  int next = blockIdx.x;
  if (next < g.tiles) few_copy(g, few_tile(g, next), x, raw);
  if (threadIdx.x < Config::kChannels) {
    const int k = first_k + threadIdx.x;
    bias_tile[threadIdx.x] = bias && k < g.k ? bias[k] : 0.0f;
  }
  few_pixel_table<2>(g, table);
  FwdFilter<Config> b;
  load_filter<Config>(b, g, w, first_k);
  const FwdPairs<Config> pairs(g);

  while (next < g.tiles) {
    const FewTile tile = few_tile(g, next);
    cp_async_wait<0>();
    __syncthreads();  // x has arrived for all, the padded tile of before has been read by all
    few_spread<2>(g, tile, raw, padded);
    __syncthreads();  // the padded tile is complete, x as it came is free
    next += gridDim.x;
    if (next < g.tiles) few_copy(g, few_tile(g, next), x, raw);
    bf16* out = y + static_cast<size_t>(tile.first_pixel) * g.k + first_k + lane % 4 * 8;
    for (int row = warp * 16 + lane / 4; row - lane / 4 < tile.pixels; row += kFewWarps * 16) {
      FwdSums<Config> sums;
#pragma unroll
      for (int i = 0; i < Config::kGroups * 4; ++i) {
        const float2 v = *reinterpret_cast<const float2*>(bias_tile + i / 4 * 32 + lane % 4 * 8 + i % 4 * 2);
        sums.v[i][0] = sums.v[i][2] = v.x, sums.v[i][1] = sums.v[i][3] = v.y;
      }
      multiply<Config>(sums, b, pairs, padded + table[row], padded + table[row + 8]);
#pragma unroll
      for (int group = 0; group < Config::kGroups; ++group) {
        const int k = first_k + group * 32 + lane % 4 * 8;
        if (k >= g.k) continue;
        if constexpr (kFused) {
          const int at = (tile.first_pixel + row) * g.k + k;
          if (row < tile.pixels) store_fused_channels(sums, group, 0, epilogue, k, at, y);
          if (row + 8 < tile.pixels) store_fused_channels(sums, group, 1, epilogue, k, at + 8 * g.k, y);
          continue;
        }
        if (row < tile.pixels) store_channels(sums, group, 0, out + row * g.k + group * 32);
        if (row + 8 < tile.pixels) store_channels(sums, group, 1, out + (row + 8) * g.k + group * 32);
      }
    }
  }
}

int smem_bytes(const FewShape& g) { return few_smem_bytes(g, 2) + 64 * static_cast<int>(sizeof(float)); }

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support s = few_supports(p, device); !s) return s;
  if (const Support s = conv2d_epilogue_supports(p); !s) return s;
  return Support::require(smem_bytes(few_shape(p, 1)) <= static_cast<int>(device.smem_per_block),
                          kFewTooWide);
}

template <class Config>
int best_rows(const Conv2dProblem& p, const Device& device) {
  const int slices = ceil_div(p.k, Config::kChannels);
  const int places = std::max(1, device.multiprocessors * Config::kBlocks / slices);
  return few_best_rows(p, places, static_cast<int>(device.smem_per_block) / Config::kBlocks - 1024,
                       smem_bytes);
}

template <class Config>
Plan<Conv2dFwd::Args> plan_for(const Conv2dProblem& p, const Device& device, int rows) {
  const FewShape g = few_shape(p, rows ? rows : best_rows<Config>(p, device));
  const int bytes = smem_bytes(g), slices = ceil_div(p.k, Config::kChannels);
  const auto kernel = p.has_epilogue() ? conv2d_fwd_few_channels_kernel<Config, true>
                                       : conv2d_fwd_few_channels_kernel<Config, false>;
  // The most there is: the limit is the kernel's, and other plans of it may need more than this one.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.smem_per_block)),
             "conv2d_fwd_few_channels: shared memory");
  const int places = std::max(1, device.multiprocessors * Config::kBlocks / slices);
  const dim3 grid(std::min(g.tiles, places), slices);
  return make_plan<Conv2dFwd::Args>(0, [=](const Conv2dFwd::Args& a, void*, Stream stream) {
    const Conv2dEpilogue epilogue = conv2d_epilogue(p, a);
    kernel<<<grid, kFewThreads, bytes, cuda_stream(stream)>>>(
        static_cast<const bf16*>(a.x), static_cast<const bf16*>(a.w),
        p.has_epilogue() ? nullptr : static_cast<const float*>(a.bias), static_cast<bf16*>(a.y), epilogue, g);
    check_launch("conv2d_fwd_few_channels_kernel");
  });
}

// Calls f with the Config of the problem.
template <class F>
auto with_config(const Conv2dProblem& p, const F& f) {
  const int steps = ceil_div(p.r * ceil_div(p.s * p.c, 2) * 2, 16);
  const bool wide = p.k > 32;
  if (steps == 1) return wide ? f(FwdConfig<1, 2>()) : f(FwdConfig<1, 1>());
  if (steps == 2) return wide ? f(FwdConfig<2, 2>()) : f(FwdConfig<2, 1>());
  if (steps == 3) return wide ? f(FwdConfig<3, 2>()) : f(FwdConfig<3, 1>());
  if (steps <= 5) return f(FwdConfig<5, 1>());
  return f(FwdConfig<10, 1>());
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_few_channels = {
    .name = "few_channels",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const int rows = few_config_rows(config);
          if (smem_bytes(few_shape(p, std::max(rows, 1))) > static_cast<int>(device.smem_per_block)) {
            fail_usage("conv2d: these rows do not fit into shared memory");
          }
          return with_config(p, [&]<class Config>(Config) { return plan_for<Config>(p, device, rows); });
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          const int best = with_config(p, [&]<class Config>(Config) { return best_rows<Config>(p, device); });
          return few_configs(best, p.p(), [&](int rows) {
            const FewShape g = few_shape(p, rows);
            return g.pixels <= kFewPixels && smem_bytes(g) <= static_cast<int>(device.smem_per_block);
          });
        },
    .preferred = few_preferred};

}  // namespace kiln
