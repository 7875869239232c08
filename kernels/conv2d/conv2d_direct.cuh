// The product of a 1x1 convolution with stride 1 and few channels, between registers and memory:
//
//   out[m, j] = bias[j] + sum_i src[m, i] * filter(i, j)
//
// Rows m are pixels, columns j output channels, i source channels. The filter stays in each warp's registers.
// A warp owns 16 rows at a time, and every so-many-th such group of the whole grid's; it loads the next group
// while it multiplies one (mma.sync m16n8k16) and waits for no other warp. Which channel is which k, and
// which is which column, is free: both are dealt so that a lane's words of a row are neighbours, loaded and
// stored as 16 bytes (8 with at most 16 channels), and the eight rows and four lanes of an access are whole
// lines. No shared memory. Needs bf16, channels in multiples of 8, at most 96, and of the source or of the
// result at most 32. Deterministic: one warp sums an output, in a fixed order.
#pragma once

#include <algorithm>

#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/mma.cuh"
#include "kernels/conv2d/conv2d_epilogue.cuh"

namespace kiln {

struct DirectShape {
  int rows;     // pixels
  int sources;  // source channels
  int columns;  // output channels
};

// For at most so many channels; kBlocks of a multiprocessor at once.
template <int kSources_, int kColumns_, int kBlocks_>
struct DirectConfig {
  static constexpr int kSources = kSources_, kColumns = kColumns_, kBlocks = kBlocks_;
  static constexpr int kWarps = 8, kThreads = kWarps * 32;
  static constexpr int kRows = 16;                                     // of a warp at a time
  static constexpr int kSteps = kSources / 16, kTiles = kColumns / 8;  // of the product
  static constexpr int kWords = kSources / 8;                          // pairs of channels: a lane's of a row
  static_assert(kSources == 16 || kSources % 32 == 0, "pieces of 8 or 16 bytes");
  static_assert(kColumns == 16 || kColumns % 32 == 0, "pieces of 8 or 16 bytes");
  static_assert(kTiles * kSteps <= 24, "the filter fits in registers");
};

// Words of a lane that are neighbours in a row of up to kChannels channels.
template <int kChannels>
constexpr int kDirectPiece = kChannels == 16 ? 2 : 4;

// The first of the two channels of a word of lane 4g + t, rows g and g + 8.
template <int kChannels>
__device__ __forceinline__ int direct_channel(int word, int t) {
  constexpr int kPiece = kDirectPiece<kChannels>;
  return word / kPiece * 8 * kPiece + t * 2 * kPiece + word % kPiece * 2;
}

// A piece of a row, zeros where !real. Volatile, so that it stays ahead of the products that follow it.
template <int kPiece>
__device__ __forceinline__ void load_piece(uint32_t* v, const bf16* from, bool real) {
  static_assert(kPiece == 2 || kPiece == 4, "8 or 16 bytes");
#pragma unroll
  for (int i = 0; i < kPiece; ++i) v[i] = 0;
  if constexpr (kPiece == 4) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}\n"
                 : "+r"(v[0]), "+r"(v[1]), "+r"(v[2]), "+r"(v[3])
                 : "l"(from), "r"(static_cast<int>(real)));
  } else {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p ld.global.v2.b32 {%0, %1}, [%2];\n}\n"
                 : "+r"(v[0]), "+r"(v[1])
                 : "l"(from), "r"(static_cast<int>(real)));
  }
}

// A lane's words of rows `row` and `row` + 8; zeros beyond the last row and channel.
template <class Config>
__device__ __forceinline__ void load_rows(uint32_t (&a)[2][Config::kWords], const bf16* src, unsigned row,
                                          int t, const DirectShape& g) {
  constexpr int kPiece = kDirectPiece<Config::kSources>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned own = row + 8 * half;
    const int channels = own < static_cast<unsigned>(g.rows) ? g.sources : 0;
    const bf16* from = src + static_cast<size_t>(own) * g.sources;
#pragma unroll
    for (int i = 0; i < Config::kWords; i += kPiece) {
      const int channel = direct_channel<Config::kSources>(i, t);
      load_piece<kPiece>(&a[half][i], from + channel, channel < channels);
    }
  }
}

// Source channels `channel` and the next of a column of the filter.
template <bool kDgrad>
__device__ __forceinline__ uint32_t filter_pair(const bf16* filter, int channel, int column,
                                                const DirectShape& g) {
  if (channel >= g.sources || column >= g.columns) return 0;
  const auto* w = reinterpret_cast<const uint16_t*>(filter);
  if (!kDgrad) return *reinterpret_cast<const uint32_t*>(w + column * g.sources + channel);
  const uint32_t high = w[(channel + 1) * g.columns + column];
  return w[channel * g.columns + column] | high << 16;
}

// The B fragments of the whole filter.
template <class Config, bool kDgrad>
__device__ __forceinline__ void load_filter(uint32_t (&b)[Config::kTiles][Config::kWords], const bf16* filter,
                                            int lane, const DirectShape& g) {
#pragma unroll
  for (int j = 0; j < Config::kTiles; ++j) {
    const int column = direct_channel<Config::kColumns>(j, lane / 8) + lane / 4 % 2;
#pragma unroll
    for (int i = 0; i < Config::kWords; ++i) {
      b[j][i] = filter_pair<kDgrad>(filter, direct_channel<Config::kSources>(i, lane % 4), column, g);
    }
  }
}

// Multiplies a lane's two rows and stores them, a piece after the other.
template <class Config, bool kBias>
__device__ __forceinline__ void multiply_rows(const uint32_t (&a)[2][Config::kWords],
                                              const uint32_t (&b)[Config::kTiles][Config::kWords],
                                              const float* bias, bf16* out, unsigned row, int t,
                                              const DirectShape& g) {
  constexpr int kPiece = kDirectPiece<Config::kColumns>;
#pragma unroll
  for (int first = 0; first < Config::kTiles; first += kPiece) {
    const int column = direct_channel<Config::kColumns>(first, t);
    float acc[kPiece][4] = {};
    if (kBias && column < g.columns) {
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const float2 pair = *reinterpret_cast<const float2*>(bias + column + 2 * j);
        acc[j][0] = acc[j][2] = pair.x, acc[j][1] = acc[j][3] = pair.y;
      }
    }
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
#pragma unroll
      for (int i = 0; i < Config::kWords; i += 2) {
        const uint32_t fragment[4] = {a[0][i], a[1][i], a[0][i + 1], a[1][i + 1]};
        mma_bf16(acc[j], fragment, b[first + j][i], b[first + j][i + 1]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec<uint32_t, kPiece> words;
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(acc[j][2 * half], acc[j][2 * half + 1]);
        words.v[j] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      const unsigned own = row + 8 * half;
      if (own < static_cast<unsigned>(g.rows) && column < g.columns) {
        words.store(reinterpret_cast<uint32_t*>(out + static_cast<size_t>(own) * g.columns + column));
      }
    }
  }
}

template <class Config, bool kDgrad, bool kBias>
__global__ __launch_bounds__(Config::kThreads, Config::kBlocks) void conv2d_direct_kernel(
    const bf16* src,     // fwd: x [N*H*W,C]; dgrad: dy [N*H*W,K]
    const bf16* filter,  // w [K,C]
    const float* bias,   // [K], with kBias (fwd)
    bf16* out,           // fwd: y [N*H*W,K]; dgrad: dx [N*H*W,C]
    const __grid_constant__ DirectShape g) {
  let_next_start();
  const int lane = threadIdx.x % 32, t = lane % 4;
  const unsigned step = gridDim.x * Config::kWarps * Config::kRows;
  const unsigned first = (blockIdx.x * Config::kWarps + threadIdx.x / 32) * Config::kRows;
  wait_for_last();
  uint32_t a[2][Config::kWords], b[Config::kTiles][Config::kWords];
  load_rows<Config>(a, src, first + lane / 4, t, g);  // on their way beside the filter, which L2 has
  load_filter<Config, kDgrad>(b, filter, lane, g);
#pragma unroll 1
  for (unsigned group = first; group < static_cast<unsigned>(g.rows); group += step) {
    uint32_t next[2][Config::kWords];
    load_rows<Config>(next, src, group + step + lane / 4, t, g);
    multiply_rows<Config, kBias>(a, b, bias, out, group + lane / 4, t, g);
#pragma unroll
    for (int i = 0; i < Config::kWords; ++i) a[0][i] = next[0][i], a[1][i] = next[1][i];
  }
}

// use(Config) of the smallest that has the channels. dgrad puts pairs of weights together and needs more
// registers for it.
template <bool kDgrad, class Use>
auto with_direct_config(int sources, int columns, Use use) {
  constexpr int kBlocks = kDgrad ? 2 : 3;
  if (columns > 32)
    return sources <= 16 ? use(DirectConfig<16, 96, kBlocks>()) : use(DirectConfig<32, 96, 2>());
  if (sources > 32) return columns <= 16 ? use(DirectConfig<96, 16, 2>()) : use(DirectConfig<96, 32, 2>());
  return sources <= 16 ? use(DirectConfig<16, 32, 3>()) : use(DirectConfig<32, 32, 3>());
}

struct DirectBuffers {
  const void *src, *filter, *bias;
  void* out;
};

// `buffers(args)`: the pass's src, filter, bias and out.
template <bool kDgrad, class Args, class Buffers>
Plan<Args> direct_plan(const DirectShape& g, bool bias, const Device& device, Buffers buffers) {
  return with_direct_config<kDgrad>(g.sources, g.columns, [&]<class Config>(Config) {
    auto kernel = conv2d_direct_kernel<Config, kDgrad, false>;
    if (!kDgrad && bias) kernel = conv2d_direct_kernel<Config, kDgrad, !kDgrad>;
    const int items = ceil_div(g.rows, Config::kRows * Config::kWarps);
    const int blocks = std::min(items, device.multiprocessors * Config::kBlocks);
    const bool early = waits_for_last(kernel, "conv2d_direct_kernel");
    return make_plan<Args>(0, [=](const Args& args, void*, Stream stream) {
      const DirectBuffers b = buffers(args);
      launch_kernel(kernel, "conv2d_direct_kernel",
                    {.grid = static_cast<unsigned>(blocks), .threads = Config::kThreads, .early = early},
                    stream, static_cast<const bf16*>(b.src), static_cast<const bf16*>(b.filter),
                    static_cast<const float*>(b.bias), static_cast<bf16*>(b.out), g);
    });
  });
}

inline Support direct_supports(const Conv2dProblem& p, const Device&) {
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.r != 1 || p.s != 1) return Support::no("the filter must be 1x1");
  if (p.stride_h != 1 || p.stride_w != 1 || p.pad_h || p.pad_w) {
    return Support::no("stride must be 1, padding 0");
  }
  if (p.c % 8 || p.k % 8) return Support::no("channels must be multiples of 8");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  return Support::require(std::max(p.c, p.k) <= 96 && std::min(p.c, p.k) <= 32,
                          "channels must be at most 96, of x or of y at most 32");
}

// Where a warp has as many rows to multiply as words of the filter to wait for at its start (dgrad puts each
// together from two), and two turns; as timed on an H100. Tensors of at most 16 channels on both sides, which
// leave half of a lane's pieces empty, are left to the others.
template <bool kDgrad>
bool direct_preferred(int rows, int sources, int columns, const Device& device) {
  if (std::max(sources, columns) <= 16) return false;
  return with_direct_config<kDgrad>(sources, columns, [&]<class Config>(Config) {
    constexpr int kLoads = (kDgrad ? 2 : 1) * Config::kTiles * Config::kWords;
    const long long warps = 1LL * device.multiprocessors * Config::kBlocks * Config::kWarps;
    return rows >= warps * std::max(kLoads, 2 * Config::kRows);
  });
}

}  // namespace kiln
