// What the batchnorm kernels that read their input once share: one cooperative launch, one block a
// multiprocessor, whose part of the tensor stays on the chip between the statistics and their use.
//
// A block covers a slab of rows as batchnorm_tile.cuh says. Of a thread's rows, counted from its first, the
// first `kept` stay in its own slots of shared memory, the last `held` in registers; those between are
// streamed: they are read again, from L2 as far as they fit, hence last in the first stage and first, from
// the end, in the second. Shared memory: scratch (floats), then kept * tensors * threads * 16 bytes. Slots
// belong to one thread, so that no barrier guards them. Between the stages the chunks of a tile meet
// (batchnorm_meeting.cuh).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/batchnorm/batchnorm_meeting.cuh"
#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/launch.h"

namespace kiln {

constexpr int kOnChipLanes = 32;  // threads along the channels, at most
constexpr int kOnChipGroup = 4;   // rows of a thread that are fetched at once
constexpr int kOnChipAhead = 8;   // rows of a thread between a prefetch and its use in the last stage

struct OnChipTile {
  BatchnormTile rows;
  int kept;  // rows of a thread in shared memory, at most
};

// How a thread's rows are split: [0, kept) in shared memory, [kept, held) streamed, [held, count) in
// registers.
struct OnChipRows {
  int kept, held, count;
  // kHeld, a multiple of the group, is the room in registers; whole groups only, all loads without a branch.
  template <int kHeld>
  __device__ __forceinline__ static OnChipRows split(int count, int most_kept) {
    static_assert(kHeld % kOnChipGroup == 0, "registers hold whole groups");
    const int kept = count < most_kept ? count : most_kept;
    const int rest = (count - kept) / kOnChipGroup * kOnChipGroup;
    return {kept, count - (rest < kHeld ? rest : kHeld), count};
  }
};

// Which channels a thread merges over the chunks, four of them, and which chunks: row, row + rows, ...
struct OnChipMerge {
  int quads, rows;  // quads * rows threads have work
  int quad, row;    // this thread's
  int channel;      // of the tensor, the first of four; those of a tile are 4 * quad, ...
  bool owns;

  template <int V, int kThreads>
  __device__ __forceinline__ static OnChipMerge of(const BatchnormTile& tile, const BatchnormSlice& s) {
    OnChipMerge m;
    m.quads = tile.lanes * V / 4;
    m.rows = kThreads / m.quads < tile.chunks ? kThreads / m.quads : tile.chunks;
    m.quad = static_cast<int>(threadIdx.x) % m.quads;
    m.row = static_cast<int>(threadIdx.x) / m.quads;
    m.channel = s.tile * tile.lanes * V + 4 * m.quad;
    m.owns = m.row < m.rows && m.channel < tile.channels;
    return m;
  }
};

// Calls f(rows, i) for the rows [begin, end): i of kRows at once, then one by one. `rows` is a constant's
// type.
template <int kRows, class F>
__device__ __forceinline__ void each_rows(int begin, int end, const F& f) {
  int i = begin;
  for (; end - i >= kRows; i += kRows) f(std::integral_constant<int, kRows>{}, i);
  if constexpr (kRows > 1) {
    for (; i < end; ++i) f(std::integral_constant<int, 1>{}, i);
  }
}

// The same from the end to the beginning.
template <int kRows, class F>
__device__ __forceinline__ void each_rows_backwards(int begin, int end, const F& f) {
  for (; end - begin >= kRows; end -= kRows) f(std::integral_constant<int, kRows>{}, end - kRows);
  if constexpr (kRows > 1) {
    for (; end > begin; --end) f(std::integral_constant<int, 1>{}, end - 1);
  }
}

// Half of the smallest power of two that is at least `rows`: the first round of a tree; 0 for one row.
__device__ __forceinline__ int tree_half(int rows) { return (1 << (31 - __clz(2 * rows - 1))) >> 1; }

// At most `lanes` threads along the channels, one block a multiprocessor at most.
template <int V>
BatchnormTile make_on_chip_rows(const BatchnormProblem& p, const Device& device, int threads, int lanes) {
  BatchnormTile t{};
  const int vectors = p.c / V;
  t.rows = static_cast<int>(p.per_channel());
  t.channels = p.c;
  t.lanes = ceil_div(vectors, ceil_div(vectors, lanes));
  // Whole 32-byte sectors side by side; and both halves of a byte of the mask in one warp.
  if (t.lanes < vectors || (V == 4 && vectors % 2 == 0)) t.lanes += t.lanes % 2;
  t.tiles = ceil_div(vectors, t.lanes);
  t.block_rows = threads / t.lanes;
  const long long most = ceil_div<long long>(t.rows, 1LL * t.block_rows * kOnChipGroup);
  const int blocks = std::max(1, device.multiprocessors);
  t.chunks = static_cast<int>(std::max(1LL, std::min<long long>(blocks / t.tiles, most)));
  return t;
}

// What follows "on_chip:" in a choice: l8, l16, l32, the most threads along the channels.
inline constexpr int kOnChipLaneChoices[] = {32, 16, 8};

inline std::string on_chip_config(int lanes) { return std::string("l").append(std::to_string(lanes)); }

inline int on_chip_lanes(std::string_view config) {
  for (const int lanes : kOnChipLaneChoices) {
    if (config == on_chip_config(lanes)) return lanes;
  }
  fail_usage("batchnorm: unknown config '" + std::string(config) + "' of on_chip; known: l8, l16, l32");
}

// `slot_bytes`: of one row of a block in shared memory; `scratch_bytes` lie before the slots. Where no lanes
// are given: those of the least time by a model, fitted to times on an H100: the bytes, the lines that two
// tiles want of what does not stay in shared memory, and what a block's merge reads.
template <int V>
OnChipTile make_on_chip_tile(const BatchnormProblem& p, const Device& device, int threads, int slot_bytes,
                             int scratch_bytes, std::string_view config) {
  constexpr double kMergeUs = 0.016;  // a KiB
  const int room = static_cast<int>(device.smem_per_block) - scratch_bytes;
  const int tensors = slot_bytes / (threads * 16);
  OnChipTile best{};
  double least = 0;
  for (const int lanes : kOnChipLaneChoices) {
    OnChipTile t{};
    t.rows = make_on_chip_rows<V>(p, device, threads, config.empty() ? lanes : on_chip_lanes(config));
    const int thread_rows = ceil_div(ceil_div(t.rows.rows, t.rows.chunks), t.rows.block_rows);
    t.kept = std::min(thread_rows, std::max(0, room / slot_bytes));
    const double mib = batchnorm_mib(p), streamed = 1 - static_cast<double>(t.kept) / thread_rows;
    const double us = batchnorm_mib_us(p, device, t.rows, (tensors + 1) * mib) +
                      kTileWasteUs * tensors * mib * streamed * batchnorm_line_waste(p, t.rows) +
                      kMergeUs * t.rows.chunks * t.rows.lanes * V / 128;
    if (best.rows.lanes > 0 && us >= least) continue;
    best = t;
    least = us;
  }
  return best;
}

inline std::vector<std::string> on_chip_configs(const BatchnormProblem& p, const Device&) {
  const int vectors = p.c / (p.dtype == DType::kBF16 ? kVec16<bf16> : kVec16<float>);
  std::vector<std::string> configs;
  for (const int lanes : kOnChipLaneChoices) {
    if (lanes == kOnChipLaneChoices[2] || vectors > lanes / 2) configs.push_back(on_chip_config(lanes));
  }
  return configs;
}

// `inputs`: tensors of x's size that the pass reads twice.
inline Support on_chip_supports(const BatchnormProblem& p, const Device& device, int inputs) {
  const bool bf = p.dtype == DType::kBF16;
  const int vector = bf ? kVec16<bf16> : kVec16<float>;
  if (!device.is_cuda() || device.smem_per_block < (160u << 10)) {
    return Support::no("the device must have 160 KiB of shared memory a block");
  }
  if (p.pool) return Support::no("there must be no pool");
  if (p.c % vector) return Support::no("channels must be a multiple of 16 bytes");
  if (p.masked() && p.c % 8) return Support::no("with a mask, channels must be a multiple of 8");
  if (ceil_div(p.c / vector, kOnChipLaneChoices[2]) > device.multiprocessors) {
    return Support::no("channels must be at most 128 bytes a multiprocessor");
  }
  const double bytes = 1.0 * inputs * p.per_channel() * p.c * static_cast<double>(size_of(p.dtype));
  return Support::require(bytes <= 6.0 * device.multiprocessors * static_cast<double>(device.smem_per_block),
                          "inputs must be at most six times the shared memory of all multiprocessors");
}

// Lets `kernel` use all of a block's shared memory.
template <class... Params>
void allow_on_chip(void (*kernel)(Params...), const Device& device, const char* name) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.smem_per_block)),
             name);
}

// Enqueues `kernel` with all its blocks resident at once.
template <class... Params, class... Args>
void launch_on_chip(void (*kernel)(Params...), const char* name, const BatchnormTile& tile, int threads,
                    int smem_bytes, Stream stream, const Args&... args) {
  launch_kernel(kernel, name,
                {.grid = tile.blocks(),
                 .threads = threads,
                 .shared_bytes = static_cast<size_t>(smem_bytes),
                 .cooperative = true},
                stream, args...);
}

}  // namespace kiln
