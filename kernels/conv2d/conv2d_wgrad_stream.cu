// conv2d wgrad of a 1x1 filter with stride 1 and few channels: dw[k,c] = sum_m dy[m,k] * x[m,c], m a pixel.
//
// dy and x are streamed once, as they lie in memory: TMA copies chunks of 64 to 256 pixels as rows of 128
// bytes, whatever the channels, into a ring that fills most of a multiprocessor's shared memory. The tensor
// with more channels gives the rows of the product, "wide", the other its columns, "narrow". A block has all
// of dw in its warps' registers: kSlices warps share the rows, kPixelGroups of such teams take the pixels of
// a chunk in turns, 16 at a time (ldmatrix turns both tiles, mma.sync m16n8k16). At the end the teams' sums
// are added in order through shared memory; each block's go to the workspace and a second kernel adds them.
// Shared memory up to 210 KiB. Needs compute capability 9.0, bf16, channels in multiples of 8, pixels in
// multiples of 8, no dbias. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include <algorithm>

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/tma.cuh"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
constexpr int kMostStages = 16;
constexpr int kLine = 64;  // elements of a row of a copy

// A warp has kMTiles x 16 by kNTiles x 8 sums.
template <int kMTiles_, int kNTiles_, int kSlices_, int kPixelGroups_>
struct StreamConfig {
  static constexpr int kMTiles = kMTiles_, kNTiles = kNTiles_;
  static constexpr int kSlices = kSlices_, kPixelGroups = kPixelGroups_;
  static constexpr int kWarps = kSlices * kPixelGroups, kThreads = (kWarps + 1) * 32;  // and the producer
  static constexpr int kWide = kSlices * kMTiles * 16, kNarrow = kNTiles * 8;          // most channels
  static constexpr int kTiles = kSlices * kMTiles * kNTiles;
  static constexpr int kSumBytes = kPixelGroups * kTiles * 32 * 16;
  static_assert(kMTiles * kNTiles <= 16, "a warp's sums leave registers for the second launch's blocks");
};

struct StreamShape {
  int wide, narrow;         // channels
  bool x_is_wide;           // else dy
  int chunks, chunk_lines;  // chunks of chunk_lines * 64 pixels, so many rows of a copy for each channel
  int stages;               // of the ring
  int apart_log2;           // of pixels that are neighbours in a product, see apart_log2()
  int contiguous;
};

struct StreamSmem {
  uint32_t base;
  int stage_bytes, stages;
  __device__ __forceinline__ uint32_t wide(int stage) const { return base + stage * stage_bytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + stages * stage_bytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kMostStages + stage); }
};

struct StreamRange {
  int first, step, count;  // chunks of a block
};

__device__ __forceinline__ StreamRange stream_range(const StreamShape& g) {
  const int block = blockIdx.x, blocks = gridDim.x;
  if (g.contiguous) {
    const int first = static_cast<int>(1LL * g.chunks * block / blocks);
    return {first, 1, static_cast<int>(1LL * g.chunks * (block + 1) / blocks) - first};
  }
  return {block, blocks, (g.chunks - block + blocks - 1) / blocks};
}

// Where the 128-byte swizzle puts the 16 bytes at `offset`.
__device__ __forceinline__ uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 3 & 0x70); }

// One thread.
__device__ __forceinline__ void stream_produce(const CUtensorMap* wide, const CUtensorMap* narrow,
                                               const StreamSmem& smem, const StreamShape& g) {
  const StreamRange range = stream_range(g);
  const int wide_lines = g.chunk_lines * g.wide, narrow_lines = g.chunk_lines * g.narrow;
  int stage = 0;
  uint32_t parity = 0;
  for (int i = 0; i < range.count; ++i) {
    const int chunk = range.first + i * range.step;
    mbarrier_wait(smem.empty(stage), parity ^ 1);
    mbarrier_arrive_expect(smem.full(stage), smem.stage_bytes);
    tma_load_3d(smem.wide(stage), wide, smem.full(stage), 0, chunk * wide_lines, 0);
    tma_load_3d(smem.wide(stage) + wide_lines * kLine * 2, narrow, smem.full(stage), 0, chunk * narrow_lines,
                0);
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
}

// A consumer warp: its sums over its pixels of all of the block's chunks. Tiles beyond the last channel
// repeat it and are not stored.
template <class Config>
__device__ __forceinline__ void stream_multiply(float (&acc)[Config::kMTiles][Config::kNTiles][4],
                                                const StreamSmem& smem, const StreamShape& g) {
  constexpr int kPairs = (Config::kNTiles + 1) / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = warp % Config::kSlices, group = warp / Config::kSlices;
  const int a_slot = lane % 8 + lane / 16 * 8, b_slot = lane % 8 + lane / 8 % 2 * 8;  // pixel of a product
  uint32_t a_piece[Config::kMTiles], b_piece[kPairs];
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
    a_piece[i] = 16 * min((slice * Config::kMTiles + i) * 2 + lane / 8 % 2, g.wide / 8 - 1);
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) b_piece[j] = 16 * min(j * 2 + lane / 16, g.narrow / 8 - 1);
  const int steps = 4 * g.chunk_lines, apart = g.apart_log2, count = stream_range(g).count;
  int stage = 0;
  uint32_t parity = 0;
  for (int i = 0; i < count; ++i) {
    mbarrier_wait(smem.full(stage), parity);
    const uint32_t a_tile = smem.wide(stage), b_tile = a_tile + g.chunk_lines * g.wide * kLine * 2;
    for (int step = group; step < steps; step += Config::kPixelGroups) {
      const int first = (step >> apart << (apart + 4)) + (step & ((1 << apart) - 1));
      const uint32_t a_row = (first + (a_slot << apart)) * g.wide * 2;
      const uint32_t b_row = (first + (b_slot << apart)) * g.narrow * 2;
      uint32_t a[Config::kMTiles][4], b[kPairs][4];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) ldmatrix_x4<true>(b[j], b_tile + swizzled(b_row + b_piece[j]));
#pragma unroll
      for (int m = 0; m < Config::kMTiles; ++m) {
        ldmatrix_x4<true>(a[m], a_tile + swizzled(a_row + a_piece[m]));
      }
#pragma unroll
      for (int m = 0; m < Config::kMTiles; ++m) {
#pragma unroll
        for (int j = 0; j < Config::kNTiles; ++j) {
          mma_bf16(acc[m][j], a[m], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(smem.empty(stage));
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
}

// The groups' sums of the block added in order and written, by all threads.
template <class Config>
__device__ __forceinline__ void stream_store(const float4* sums,  // [kPixelGroups][kTiles][32]
                                             float* out,          // [K,C]
                                             const StreamShape& g) {
  const int lane = threadIdx.x % 32;
  for (int tile = threadIdx.x / 32; tile < Config::kTiles; tile += Config::kThreads / 32) {
    const int column = tile % Config::kNTiles * 8 + 2 * (lane % 4);
    float4 sum = sums[tile * 32 + lane];
#pragma unroll
    for (int group = 1; group < Config::kPixelGroups; ++group) {
      const float4 v = sums[(group * Config::kTiles + tile) * 32 + lane];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile / Config::kNTiles * 16 + half * 8 + lane / 4;
      const float2 pair = half ? make_float2(sum.z, sum.w) : make_float2(sum.x, sum.y);
      if (row >= g.wide || column >= g.narrow) continue;
      if (g.x_is_wide) {
        out[column * g.wide + row] = pair.x;
        out[(column + 1) * g.wide + row] = pair.y;
      } else {
        *reinterpret_cast<float2*>(out + row * g.narrow + column) = pair;
      }
    }
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_wgrad_stream_kernel(
    const __grid_constant__ CUtensorMap wide,    // x [N*H*W*C/64, 64], or dy
    const __grid_constant__ CUtensorMap narrow,  // dy [N*H*W*K/64, 64], or x
    float* partial,                              // [blocks,K,C]
    const __grid_constant__ StreamShape g) {
  extern __shared__ unsigned char raw[];
  const uint32_t unaligned = smem_address(raw), base = (unaligned + kAlignment - 1) / kAlignment * kAlignment;
  const StreamSmem smem = {base, g.chunk_lines * (g.wide + g.narrow) * kLine * 2, g.stages};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&wide);
    tma_prefetch_map(&narrow);
    for (int i = 0; i < g.stages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  let_next_start();
  wait_for_last();
  float acc[Config::kMTiles][Config::kNTiles][4] = {};
  if (warp == Config::kWarps) {
    if (lane == 0) stream_produce(&wide, &narrow, smem, g);
    __syncwarp();
  } else {
    stream_multiply<Config>(acc, smem, g);
  }
  float4* sums = reinterpret_cast<float4*>(raw + (base - unaligned));
  __syncthreads();  // all copies have arrived and been read: the ring is free
  if (warp < Config::kWarps) {
    const int slice = warp % Config::kSlices, group = warp / Config::kSlices;
    const int first = group * Config::kTiles + slice * Config::kMTiles * Config::kNTiles;
#pragma unroll
    for (int m = 0; m < Config::kMTiles; ++m) {
#pragma unroll
      for (int j = 0; j < Config::kNTiles; ++j) {
        const float* v = acc[m][j];
        sums[(first + m * Config::kNTiles + j) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  __syncthreads();  // the sums are in shared memory
  stream_store<Config>(sums, partial + static_cast<size_t>(blockIdx.x) * g.wide * g.narrow, g);
}

// use(Config) of the smallest that has the channels.
template <class Use>
auto with_stream_config(int wide, int narrow, Use use) {
  if (wide <= 32) return narrow <= 16 ? use(StreamConfig<2, 2, 1, 8>()) : use(StreamConfig<2, 4, 1, 8>());
  if (narrow > 32) return wide <= 64 ? use(StreamConfig<2, 8, 2, 4>()) : use(StreamConfig<2, 8, 4, 2>());
  if (wide <= 64) return use(StreamConfig<2, 4, 2, 4>());
  if (wide <= 96) return narrow <= 16 ? use(StreamConfig<3, 2, 2, 4>()) : use(StreamConfig<3, 4, 2, 4>());
  return wide <= 144 ? use(StreamConfig<3, 4, 3, 4>()) : use(StreamConfig<3, 4, 4, 2>());
}

// Which of 16 bytes' eight places in 128 bytes of banks a pixel's first channels have.
int place_of(int pixel, int channels) {
  const int piece = pixel * channels / 8;
  return (piece ^ piece >> 3) & 7;
}

// The turns in which a transposed 8x8 matrix of pixels first, first + apart, .. is read.
int read_turns(int first, int apart, int channels) {
  int at[8] = {};
  for (int i = 0; i < 8; ++i) ++at[place_of(first + i * apart, channels)];
  return *std::max_element(at, at + 8);
}

// Products take pixels 1, 2 or 4 apart: as read in the fewest turns.
int apart_log2(int wide, int narrow) {
  int best = 0, best_turns = 0;
  for (int log = 0; log < 3; ++log) {
    int turns = 0;
    for (int first = 0; first < 1 << log; ++first) {
      turns += (wide * read_turns(first, 1 << log, wide) + narrow * read_turns(first, 1 << log, narrow))
               << (2 - log);
    }
    if (log == 0 || turns < best_turns) best = log, best_turns = turns;
  }
  return best;
}

// [pixels * channels / 64][64], as boxes of `lines`.
CUtensorMap line_map(const void* base, int pixels, int channels, int lines) {
  const uint64_t all = static_cast<uint64_t>(pixels) * channels / kLine;
  return make_tiled_map(TiledMap<3>{.base = base,
                                    .sizes = {kLine, all, 1},
                                    .strides = {kLine, kLine * all},
                                    .box = {kLine, static_cast<uint32_t>(lines), 1}});
}

Support supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("TMA needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.bias) return Support::no("dbias is not computed");
  if (p.r != 1 || p.s != 1) return Support::no("the filter must be 1x1");
  if (p.stride_h != 1 || p.stride_w != 1 || p.pad_h || p.pad_w) {
    return Support::no("stride must be 1, padding 0");
  }
  if (p.c % 8 || p.k % 8) return Support::no("channels must be multiples of 8");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  if (1LL * p.n * p.h * p.w % 8) return Support::no("pixels must be a multiple of 8");
  const int wide = std::max(p.c, p.k), narrow = std::min(p.c, p.k);
  return Support::require(wide <= (narrow <= 32 ? 192 : 128) && narrow <= 64,
                          "channels must be at most 32 and 192, or 64 and 128");
}

struct Options {
  bool contiguous = false, early = false, sum = true;
  int per_sm = 1, ring = 200, lines = 0, apart = -1;
};

Options parse(std::string_view config) {  // "c", "e", "n", "b2", "r100", "m2", "a0"
  Options o;
  for (size_t i = 0; i < config.size();) {
    const char what = config[i++];
    int v = 0;
    for (; i < config.size() && config[i] >= '0' && config[i] <= '9'; ++i) v = v * 10 + config[i] - '0';
    if (what == 'c') o.contiguous = true;
    if (what == 'e') o.early = true;
    if (what == 'n') o.sum = false;
    if (what == 'b') o.per_sm = v;
    if (what == 'r') o.ring = v;
    if (what == 'm') o.lines = v;
    if (what == 'a') o.apart = v;
  }
  return o;
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device, const Options& o) {
  const bool x_is_wide = p.c > p.k;
  const int wide = std::max(p.c, p.k), narrow = std::min(p.c, p.k), pixels = p.n * p.h * p.w;
  int chunk_lines = 1;  // some 12 KiB a chunk, a box of at most 256 rows
  while (chunk_lines < 4 && 128 * chunk_lines * (wide + narrow) < 12000) chunk_lines *= 2;
  if (o.lines) chunk_lines = o.lines;
  while (chunk_lines * wide > 256) chunk_lines /= 2;
  const int stage_bytes = 128 * chunk_lines * (wide + narrow);
  const int stages = std::min(kMostStages, o.ring * 1024 / stage_bytes);
  const StreamShape g = {.wide = wide,
                         .narrow = narrow,
                         .x_is_wide = x_is_wide,
                         .chunks = ceil_div(pixels, 64 * chunk_lines),
                         .chunk_lines = chunk_lines,
                         .stages = stages,
                         .apart_log2 = o.apart >= 0 ? o.apart : apart_log2(wide, narrow),
                         .contiguous = o.contiguous};
  const int blocks = std::min(g.chunks, device.multiprocessors * o.per_sm), outputs = p.k * p.c;
  const size_t shared = std::max(stages * stage_bytes + 2 * kMostStages * 8, Config::kSumBytes) + kAlignment;
  const auto kernel = conv2d_wgrad_stream_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024),
             "conv2d_wgrad_stream: shared memory");
  const size_t workspace = blocks > 1 ? static_cast<size_t>(blocks) * outputs * sizeof(float) : 0;
  return Plan<Conv2dWgrad::Args>(workspace, [=](const Conv2dWgrad::Args& a, void* scratch) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap dy = line_map(a.dy, pixels, p.k, chunk_lines * p.k);
    const CUtensorMap x = line_map(a.x, pixels, p.c, chunk_lines * p.c);
    float* dw = static_cast<float*>(a.dw);
    float* partial = blocks > 1 ? static_cast<float*>(scratch) : dw;
    return Bound([=](Stream stream) {
      launch_kernel(kernel, "conv2d_wgrad_stream_kernel",
                    {.grid = static_cast<unsigned>(blocks),
                     .threads = Config::kThreads,
                     .shared_bytes = shared,
                     .early = o.early},
                    stream, x_is_wide ? x : dy, x_is_wide ? dy : x, partial, g);
      if (blocks > 1 && o.sum) sum_splits(partial, blocks, outputs, dw, stream);
    });
  });
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_stream = {
    .name = "stream",
    .supports = supports,
    .plan = [](const Conv2dProblem& p, const Device& device, std::string_view config) {
      return with_stream_config(std::max(p.c, p.k), std::min(p.c, p.k), [&]<class Config>(Config) {
        return plan_for<Config>(p, device, parse(config));
      });
    }};

}  // namespace kiln
