// conv2d wgrad of a 1x1 filter with stride 1 and few channels: dw[k,c] = sum_m dy[m,k] * x[m,c], m a pixel.
//
// dy and x are streamed once, as they lie in memory: TMA copies chunks of pixels as rows of 128 bytes,
// whatever the channels, into a ring of stages. The tensor with more channels gives the rows of the product,
// "wide", the other its columns, "narrow". A block has all of dw in its warps' registers: kSlices warps share
// the rows, kPixelGroups of such teams take the pixels of a chunk in turns, 16 at a time (ldmatrix turns both
// tiles, mma.sync m16n8k16). At the end the teams' sums are added in order through shared memory; each
// block's go to the workspace and a second kernel adds them. Shared memory 98 to 202 KiB; config "ring96":
// KiB of the ring. Needs compute capability 9.0, bf16, channels in multiples of 8, at most 32 and 192 or 64
// and 128, pixels in multiples of 8, no dbias. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgrad_stream.cuh"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

constexpr int kMostBoxRows = 256;
constexpr int kTurns = 8;  // chunks that each multiprocessor has at least, where chunks are made larger
constexpr std::array<int, 3> kRings = {96, 128, 200};  // KiB

// use(Config) of the first that holds the channels.
template <class Config, class... Larger, class Use>
auto with_first_that_holds(int wide, int narrow, Use use) {
  if constexpr (sizeof...(Larger) > 0) {
    if (!Config::holds(wide, narrow)) return with_first_that_holds<Larger...>(wide, narrow, use);
  }
  return use(Config());
}

template <class Use>
auto with_stream_config(int wide, int narrow, Use use) {
  return with_first_that_holds<StreamConfig<2, 2, 1, 8>, StreamConfig<2, 4, 1, 8>, StreamConfig<2, 4, 2, 4>,
                               StreamConfig<3, 2, 2, 4>, StreamConfig<3, 4, 2, 4>, StreamConfig<3, 4, 3, 4>,
                               StreamConfig<3, 4, 4, 2>, StreamConfig<2, 8, 2, 4>, StreamConfig<2, 8, 4, 2>>(
      wide, narrow, use);
}

// KiB of the ring where none is asked for. Two rings of 96 have room beside each other on a multiprocessor.
// With some 70 registers a thread so have both blocks and one of the sum's: the next launch is in place
// before this one ends. With some 90 a block of the sum keeps that of the next launch away, which then goes
// where there is one already, and the work is dealt unevenly: a ring that fills the multiprocessor keeps them
// apart. With 115 and more there is no room for two in any case.
template <class Config>
constexpr int default_ring() {
  constexpr int kTiles = Config::kMTiles * Config::kNTiles;
  return kTiles > 4 && kTiles < 12 ? 200 : 96;
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

// Where it was timed faster than the others on an H100: with at most 32 channels on one side, or where the
// whole problem is a few chunks.
bool preferred(const Conv2dProblem& p, const Device&) {
  return std::min(p.c, p.k) <= 32 || 1LL * p.n * p.h * p.w <= 16 * kLine;
}

std::string ring_name(int kib) { return "ring" + std::to_string(kib); }

std::vector<std::string> trials(const Conv2dProblem&, const Device&) {
  std::vector<std::string> names;
  for (const int kib : kRings) names.push_back(ring_name(kib));
  return names;
}

// KiB of the ring that `config` names, or of the Config's own.
template <class Config>
int ring_of(std::string_view config) {
  if (config.empty()) return default_ring<Config>();
  std::string known;
  for (const int kib : kRings) {
    if (ring_name(kib) == config) return kib;
    known += (known.empty() ? "" : ", ") + ring_name(kib);
  }
  fail_usage("conv2d stream: unknown config '" + std::string(config) + "'; known: " + known);
}

// Lines of a channel in a chunk: few, but so many that the ring is of at most kMostStages, as far as boxes
// allow and each multiprocessor has kTurns chunks.
int lines_of_chunk(int pixels, int wide, int narrow, int ring_bytes, const Device& device) {
  int lines = 1;
  while (ring_bytes / (lines * (wide + narrow) * kLine * 2) > kMostStages &&
         2 * lines * wide <= kMostBoxRows &&
         pixels / (2 * lines * kLine) >= kTurns * device.multiprocessors) {
    lines *= 2;
  }
  return lines;
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device, std::string_view config) {
  static_assert(Config::kSumBytes <= kRings.front() * 1024, "the teams' sums fit where the ring was");
  const bool x_is_wide = p.c > p.k;
  const int wide = std::max(p.c, p.k), narrow = std::min(p.c, p.k), pixels = p.n * p.h * p.w;
  const int ring_bytes = ring_of<Config>(config) * 1024;
  const int lines = lines_of_chunk(pixels, wide, narrow, ring_bytes, device);
  const StreamShape g = {.wide = wide,
                         .narrow = narrow,
                         .x_is_wide = x_is_wide,
                         .chunks = ceil_div(pixels, kLine * lines),
                         .chunk_lines = lines,
                         .stages = std::min(kMostStages, ring_bytes / (lines * (wide + narrow) * kLine * 2)),
                         .apart_log2 = apart_log2(wide, narrow)};
  // A warp's chain of sums stays below longest_chain() up to some 30 million pixels.
  const int blocks = std::min(g.chunks, device.multiprocessors), outputs = p.k * p.c;
  // All of the ring even where few stages are used: what lies beside a block must not depend on that.
  const size_t shared = ring_bytes + 2 * kMostStages * 8 + kAlignment;
  const auto kernel = conv2d_wgrad_stream_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  kRings.back() * 1024 + 2 * kMostStages * 8 + kAlignment),
             "conv2d_wgrad_stream: shared memory");
  const size_t workspace = blocks > 1 ? static_cast<size_t>(blocks) * outputs * sizeof(float) : 0;
  return Plan<Conv2dWgrad::Args>(workspace, [=](const Conv2dWgrad::Args& a, void* scratch) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap dy = line_map(a.dy, pixels, p.k, lines * p.k);
    const CUtensorMap x = line_map(a.x, pixels, p.c, lines * p.c);
    float* dw = static_cast<float*>(a.dw);
    float* partial = blocks > 1 ? static_cast<float*>(scratch) : dw;
    return Bound([=](Stream stream) {
      launch_kernel(kernel, "conv2d_wgrad_stream_kernel",
                    {.grid = static_cast<unsigned>(blocks),
                     .threads = Config::kThreads,
                     .shared_bytes = shared,
                     .early = true},
                    stream, x_is_wide ? x : dy, x_is_wide ? dy : x, partial, g);
      if (blocks > 1) sum_splits(partial, blocks, outputs, dw, stream);
    });
  });
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_stream = {
    .name = "stream",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          return with_stream_config(std::max(p.c, p.k), std::min(p.c, p.k), [&]<class Config>(Config) {
            return plan_for<Config>(p, device, config);
          });
        },
    .configs = trials,
    .preferred = preferred};

}  // namespace kiln
