// How the batchnorm kernels with a ring are laid out on a problem, and launched.
//
// A config is "l<lanes>[_k<MiB>]": vectors of 16 bytes a tile; what L2 is to keep of the stages that are read
// twice.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/batchnorm/batchnorm_tma_ring.cuh"
#include "kernels/common/launch.h"
#include "kernels/common/tensor_map.h"

namespace kiln {

struct RingChoice {
  int lanes;
  int l2_mib = -1;  // -1: a share of L2

  std::string str() const {
    std::string text = std::string("l").append(std::to_string(lanes));
    if (l2_mib >= 0) text.append("_k").append(std::to_string(l2_mib));
    return text;
  }
};

inline constexpr int kRingMib[] = {0, 24, 48};
inline constexpr int kRingLanesTried[] = {32, 16, 8, 4};

inline int ring_vectors(const BatchnormProblem& p) { return p.c / (16 / static_cast<int>(size_of(p.dtype))); }

// `tensors`: of x's size that the pass reads.
inline RingTile make_ring_tile(const BatchnormProblem& p, const Device& device, int tensors,
                               const RingChoice& choice) {
  RingTile ring{};
  BatchnormTile& t = ring.rows;
  t.rows = static_cast<int>(p.per_channel());
  t.channels = p.c;
  t.lanes = choice.lanes;
  t.tiles = ceil_div(ring_vectors(p), t.lanes);
  t.block_rows = kRingThreads / t.lanes;
  t.chunks = std::min(std::max(1, device.multiprocessors / t.tiles), ceil_div(t.rows, t.block_rows));
  ring.stride = t.lanes * t.block_rows;
  ring.chunk_rows = t.rows / t.chunks;
  ring.longer_chunks = t.rows % t.chunks;
  const int chunk_rows = ceil_div(t.rows, t.chunks);
  const int stages = ceil_div(chunk_rows, std::min(256, t.block_rows * (4 / tensors)));  // 256: of a box
  ring.stage_rows = ceil_div(chunk_rows, stages);
  const int room = (static_cast<int>(device.smem_per_block) - kRingSharedBytes) / kRingSlotBytes;
  ring.slots = std::min(stages, std::min(room, kRingSlots));
  const double l2 =
      choice.l2_mib >= 0 ? choice.l2_mib * 1048576.0 : 0.8 * static_cast<double>(device.l2_bytes);
  const double stage_bytes = 16.0 * tensors * ring.stage_rows * t.lanes * t.blocks();
  ring.l2_stages = std::min(stages - ring.slots, static_cast<int>(l2 / stage_bytes));
  return ring;
}

inline int ring_smem_bytes(const RingTile& ring) { return kRingSharedBytes + ring.slots * kRingSlotBytes; }

// The tiles worth a try, wide ones first: even shares of the vectors, whole sectors where there are several.
inline std::vector<RingChoice> ring_choices(const BatchnormProblem& p, const Device& device) {
  std::vector<RingChoice> choices;
  const int vectors = ring_vectors(p);
  for (const int most : kRingLanesTried) {
    int lanes = ceil_div(vectors, ceil_div(vectors, most));
    if (lanes < vectors) lanes += lanes % 2;
    const bool known = !choices.empty() && choices.back().lanes == lanes;
    if (!known && ceil_div(vectors, lanes) <= device.multiprocessors) choices.push_back({lanes});
  }
  return choices;
}

// Microseconds by a model, fitted to times on an H100: the bytes; what does not stay on chip, again, and the
// lines of it that two tiles want; and a block's merges: rounds of a thread's loads of other blocks' results,
// sums of a channel, and those by rows of threads where warps cannot add up. Moments merge slower than sums.
inline double ring_us(const BatchnormProblem& p, const Device& device, int tensors,
                      const RingChoice& choice) {
  constexpr double kAgainUs = 0.24, kSharedLineUs = 0.005;          // a MiB
  constexpr double kRoundUs = 0.05, kSumUs = 0.012, kRowsUs = 0.5;  // of a merge
  constexpr double kMoments = 3.3;                                  // times a sum's merge
  const RingTile ring = make_ring_tile(p, device, tensors, choice);
  const BatchnormTile& t = ring.rows;
  const double read = tensors * batchnorm_mib(p), written = (p.masked() ? 2 : 1) * batchnorm_mib(p);
  const int stages = ceil_div(ceil_div(t.rows, t.chunks), ring.stage_rows);
  const double again = read * std::max(0, stages - ring.slots) / stages;
  const double waste = batchnorm_line_waste(p, t);
  const int quads = std::max(1, t.lanes * 4 / static_cast<int>(size_of(p.dtype)));
  const int threads = std::max(1, kRingThreads / quads);  // of four channels, in a merge
  const bool in_warps = t.lanes <= 16 && (t.lanes & (t.lanes - 1)) == 0;
  const double merge = kRoundUs * ceil_div(t.chunks, threads) + kSumUs * std::min(t.chunks, threads) +
                       (in_warps ? 0 : kRowsUs);
  return batchnorm_mib_us(p, device, t, read + written) + again * (kAgainUs + kTileWasteUs * waste) +
         kSharedLineUs * read * waste + (tensors == 1 ? kMoments : 1) * merge;
}

inline RingChoice ring_default(const BatchnormProblem& p, const Device& device, int tensors) {
  const std::vector<RingChoice> choices = ring_choices(p, device);
  return *std::min_element(choices.begin(), choices.end(), [&](const RingChoice& a, const RingChoice& b) {
    return ring_us(p, device, tensors, a) < ring_us(p, device, tensors, b);
  });
}

inline std::vector<std::string> ring_configs(const BatchnormProblem& p, const Device& device, int tensors) {
  std::vector<std::string> configs;
  for (const RingChoice& choice : ring_choices(p, device)) configs.push_back(choice.str());
  RingChoice best = ring_default(p, device, tensors);
  const RingTile ring = make_ring_tile(p, device, tensors, best);
  if (ring.slots * ring.stage_rows >= ceil_div(ring.rows.rows, ring.rows.chunks)) return configs;
  for (const int mib : kRingMib) {
    best.l2_mib = mib;
    configs.push_back(best.str());
  }
  return configs;
}

inline RingChoice parse_ring_choice(const BatchnormProblem& p, const Device& device,
                                    std::string_view config) {
  for (const RingChoice& known : ring_choices(p, device)) {
    RingChoice choice = known;
    if (config == choice.str()) return choice;
    for (const int mib : kRingMib) {
      choice.l2_mib = mib;
      if (config == choice.str()) return choice;
    }
  }
  std::string lanes;
  for (const RingChoice& known : ring_choices(p, device)) {
    lanes.append(lanes.empty() ? "" : "|").append(known.str());
  }
  fail_usage("batchnorm: unknown config '" + std::string(config) + "' of tma_ring; known here: (" + lanes +
             ")[_k(0|24|48)]");
}

inline Support ring_supports(const BatchnormProblem& p, const Device& device) {
  const int vector = 16 / static_cast<int>(size_of(p.dtype));
  if (device.sm != 90) return Support::no("TMA as this kernel uses it needs compute capability 9.0");
  if (p.pool) return Support::no("there must be no pool");
  if (p.c % vector) return Support::no("channels must be a multiple of 16 bytes");
  if (batchnorm_is_smooth(p.act)) return Support::no("the activation must be none, relu or relu6");
  return Support::require(ceil_div(ring_vectors(p), kRingLanes) <= device.multiprocessors,
                          "channels must be at most 512 bytes a multiprocessor");
}

// Where a pixel has 64 bytes at least and some tile keeps the multiprocessors busy.
inline bool ring_preferred(const BatchnormProblem& p, const Device& device, int tensors) {
  if (p.c * size_of(p.dtype) < 64) return false;
  const std::vector<RingChoice> choices = ring_choices(p, device);
  return std::any_of(choices.begin(), choices.end(), [&](const RingChoice& choice) {
    const BatchnormTile t = make_ring_tile(p, device, tensors, choice).rows;
    return ring_vectors(p) * t.chunks >= 0.85 * t.lanes * device.multiprocessors;
  });
}

// A stage's box of the matrix at `base`, [M,C].
inline CUtensorMap make_ring_map(const BatchnormProblem& p, const RingTile& ring, const void* base) {
  const int bytes = static_cast<int>(size_of(p.dtype));
  return make_dense_map({.base = base,
                         .element_bytes = bytes,
                         .sizes = {static_cast<uint64_t>(p.c), static_cast<uint64_t>(p.per_channel()), 1, 1},
                         .box = {static_cast<uint32_t>(ring.rows.lanes * 16 / bytes),
                                 static_cast<uint32_t>(ring.stage_rows), 1, 1}});
}

// The layout, the kernel that runs it, and where its blocks meet.
template <class Kernel>
struct RingLaunch {
  Kernel kernel;
  const char* name;
  RingTile ring;
  BatchnormMeetingWords words;

  template <class... Args>
  void operator()(Stream stream, const Args&... args) const {
    launch_kernel(
        kernel, name,
        {.grid = dim3(static_cast<unsigned>(ring.rows.chunks), static_cast<unsigned>(ring.rows.tiles)),
         .threads = kRingBlock,
         .shared_bytes = static_cast<size_t>(ring_smem_bytes(ring)),
         .cooperative = true},
        stream, args...);
  }
};

// `tensors`: of x's size that the pass reads. An empty config: the model's choice.
template <class Kernel>
RingLaunch<Kernel> make_ring_launch(const BatchnormProblem& p, const Device& device, int tensors,
                                    Kernel kernel, const char* name, std::string_view config) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.smem_per_block)),
             name);
  const RingChoice choice =
      config.empty() ? ring_default(p, device, tensors) : parse_ring_choice(p, device, config);
  const RingTile ring = make_ring_tile(p, device, tensors, choice);
  return {kernel, name, ring, BatchnormMeetingWords(ring.rows)};
}

}  // namespace kiln
