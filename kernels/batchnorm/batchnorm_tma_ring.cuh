// What the batchnorm kernels with a ring of stages share: one block a multiprocessor, 8 warps that compute
// and one that loads. A block owns a chunk of rows of a tile of channels (up to 32 vectors of 16 bytes) and
// walks it in stages, forwards for the statistics and backwards with them.
//
// A stage is one copy by the TMA unit: a box of the matrix, or, where the tile is as wide as the matrix, a
// run of memory. The ring takes all shared memory, so that the walk's end is still on chip when the walk
// turns: those stages are used again at once, and their slots refilled with earlier ones. Stage i is in slot
// i % slots; the stages before those on chip are marked to stay in L2 as far as they fit (`l2_stages`), all
// others to leave it first. Between the walks the chunks of a tile meet (batchnorm_meeting.cuh): a
// cooperative launch; the loading warp goes on at once. Shared memory: RingShared, then slots * 16 KiB.
#pragma once

#include "kernels/batchnorm/batchnorm_meeting.cuh"
#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/check.h"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/tma.cuh"

namespace kiln {

constexpr int kRingThreads = 256;  // that compute; a warp more loads
constexpr int kRingWarps = kRingThreads / 32;
constexpr int kRingBlock = kRingThreads + 32;
constexpr int kRingSlotBytes = 16 << 10;
constexpr int kRingSlots = 13;
constexpr int kRingLanes = 32;      // vectors of a tile, at most
constexpr int kRingChannels = 256;  // of a tile, at most
constexpr int kRingBatch = 9;       // chunks that a thread of the merge has in flight

struct RingTile {
  BatchnormTile rows;             // lanes: vectors of a tile; block_rows: rows that the threads take at once
  int stride;                     // lanes * block_rows: vectors from a thread's row to its next in a stage
  int chunk_rows, longer_chunks;  // rows of a chunk; the first ones have one more
  int stage_rows;                 // at most
  int slots;
  int l2_stages;  // stages of a block that L2 is to keep

  __device__ __forceinline__ int rows_of(int chunk) const { return chunk_rows + (chunk < longer_chunks); }
  // Warps add up by shuffles.
  __device__ __forceinline__ bool in_warps() const {
    return rows.lanes <= 16 && (rows.lanes & (rows.lanes - 1)) == 0;
  }
};

struct RingShared {
  alignas(16) float first[kRingThreads * 4];   // mean (or sum g) [sets][channels]: of warps or rows of
                                               // threads, then of a merge's rows
  alignas(16) float second[kRingThreads * 4];  // M2 (or sum g * d)
  alignas(16) float result[3][kRingChannels];  // what the last walk needs of a channel
  float count[kRingThreads];                   // values behind a set
  alignas(8) uint64_t full[kRingSlots], empty[kRingSlots];
};
constexpr int kRingSharedBytes = (sizeof(RingShared) + 127) / 128 * 128;

// Slot and phase of a stage: `parity` ends the wait for its bytes; the slot is free for it at the other.
struct RingAt {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void forward(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
  __device__ __forceinline__ void back(int slots) {
    if (--slot < 0) slot = slots - 1, parity ^= 1;
  }
};

// A block's part of the tensor, and a thread's of each stage.
struct RingSlice {
  int chunk, begin, rows, stages;  // rows [begin, begin + rows) of the matrix
  int tile_channel;                // the tile's first
  int row, lane, channel;          // this thread's first row of a stage, vector and first channel of V
  bool owns;                       // the channels exist

  template <int V>
  __device__ __forceinline__ static RingSlice of(const RingTile& ring) {
    const int t = static_cast<int>(threadIdx.x);
    RingSlice s;
    s.chunk = static_cast<int>(blockIdx.x);
    s.begin = s.chunk * ring.chunk_rows + min(s.chunk, ring.longer_chunks);
    s.rows = ring.rows_of(s.chunk);
    s.stages = (s.rows + ring.stage_rows - 1) / ring.stage_rows;
    s.tile_channel = static_cast<int>(blockIdx.y) * ring.rows.lanes * V;
    s.row = t / ring.rows.lanes;
    s.lane = t % ring.rows.lanes;
    s.channel = s.tile_channel + s.lane * V;
    s.owns = s.row < ring.rows.block_rows && s.channel < ring.rows.channels;
    if (!s.owns) s.channel = 0;
    return s;
  }
  // How many of this thread's kRows rows of a stage exist: those row + u * block_rows with u below it.
  template <int kRows>
  __device__ __forceinline__ int left(const RingTile& ring, int stage) const {
    const int rest = min(ring.stage_rows, rows - stage * ring.stage_rows) - row;
    int count = 0;
#pragma unroll
    for (int u = 0; u < kRows; ++u) count += rest > u * ring.rows.block_rows;
    return owns ? count : 0;
  }
  // This thread's first row of a stage, of the matrix.
  __device__ __forceinline__ size_t first_row(const RingTile& ring, int stage) const {
    return static_cast<size_t>(begin + stage * ring.stage_rows + row);
  }
};

template <int kPriority>  // 0: first to leave L2, 1: as usual
__device__ __forceinline__ uint64_t l2_policy() {
  uint64_t policy;
  if constexpr (kPriority == 0) {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  } else {
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;\n" : "=l"(policy));
  }
  return policy;
}

template <class T, int V>
__device__ __forceinline__ void store_hinted(const Vec<T, V>& row, T* to, uint64_t policy) {
  static_assert(sizeof row == 16, "16 bytes an access");
  const uint4 v = *reinterpret_cast<const uint4*>(&row);
  asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;\n" ::"l"(to), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w), "l"(policy)
               : "memory");
}

// The threads that compute.
__device__ __forceinline__ void ring_sync() {
  asm volatile("bar.sync 1, %0;\n" ::"n"(kRingThreads) : "memory");
}

__device__ __forceinline__ void ring_init(RingShared& shared, int slots) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < slots; ++s) {
      mbarrier_init(smem_address(&shared.full[s]), 1);
      mbarrier_init(smem_address(&shared.empty[s]), kRingWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
}

// The loading warp's work: one thread starts the copies of kTensors tensors, one behind the other in a slot.
template <int kTensors>
struct RingLoader {
  const CUtensorMap* maps[kTensors];  // boxes of the tensors
  const void* tensors[kTensors];      // [M,C]
  RingShared& shared;
  const RingTile& ring;
  const RingSlice& slice;
  uint32_t slots;  // shared address
  RingAt at;

  __device__ __forceinline__ void fill(int stage, uint64_t policy) const {
    constexpr int kPart = kRingSlotBytes / kTensors;
    const uint32_t full = smem_address(&shared.full[at.slot]);
    const int row = slice.begin + stage * ring.stage_rows;
    const bool run = ring.rows.tiles == 1;
    const int rows = run ? min(ring.stage_rows, slice.rows - stage * ring.stage_rows) : ring.stage_rows;
    const uint32_t bytes = static_cast<uint32_t>(rows * ring.rows.lanes * 16);
    mbarrier_arrive_expect(full, kTensors * bytes);
#pragma unroll
    for (int k = 0; k < kTensors; ++k) {
      const uint32_t to = slots + at.slot * kRingSlotBytes + k * kPart;
      if (run) {
        const auto* from =
            static_cast<const unsigned char*>(tensors[k]) + static_cast<size_t>(row) * (ring.rows.lanes * 16);
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
            "[%0], [%1], %2, [%3], %4;\n" ::"r"(to),
            "l"(from), "r"(bytes), "r"(full), "l"(policy)
            : "memory");
      } else {
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
            "[%0], [%1, {%3, %4, %5, %5}], [%2], %6;\n" ::"r"(to),
            "l"(maps[k]), "r"(full), "r"(slice.tile_channel), "r"(row), "r"(0), "l"(policy)
            : "memory");
      }
    }
  }
  __device__ __forceinline__ void wait_free() const {
    mbarrier_wait(smem_address(&shared.empty[at.slot]), at.parity ^ 1);
  }
  __device__ __forceinline__ void walk_forwards() {
    const uint64_t once = l2_policy<0>(), again = l2_policy<1>();
    const int on_chip = slice.stages - ring.slots;  // the first that stays
    for (int i = 0; i < slice.stages; ++i) {
      if (i >= ring.slots) wait_free();
      fill(i, i < on_chip && i >= on_chip - ring.l2_stages ? again : once);
      at.forward(ring.slots);
    }
  }
  __device__ __forceinline__ void walk_backwards() {
    const uint64_t once = l2_policy<0>();
    at.back(ring.slots);
    at.parity ^= 1;
    for (int i = slice.stages - ring.slots - 1; i >= 0; --i) {
      wait_free();
      fill(i, once);
      at.back(ring.slots);
    }
  }
};

// The computing warps' walks: f(stage, slot) once its bytes are there, then the slot is free where it is
// needed again. walk_backwards goes on where walk_forwards has left `at`.
template <class F>
__device__ __forceinline__ void walk_forwards(RingShared& shared, int stages, int slots, RingAt& at,
                                              const F& f) {
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    mbarrier_wait(smem_address(&shared.full[at.slot]), at.parity);
    f(i, at.slot);
    if (i + slots < stages) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(smem_address(&shared.empty[at.slot]));
    }
    at.forward(slots);
  }
}
template <class F>
__device__ __forceinline__ void walk_backwards(RingShared& shared, int stages, int slots, RingAt at,
                                               const F& f) {
#pragma unroll 1
  for (int i = stages - 1; i >= 0; --i) {
    at.back(slots);
    if (i + slots < stages) mbarrier_wait(smem_address(&shared.full[at.slot]), at.parity);
    f(i, at.slot);
    if (i >= slots) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(smem_address(&shared.empty[at.slot]));
    }
  }
}

// Which chunks a thread merges, row, row + rows, ..., and of which four channels; none of those that do not
// exist.
struct RingMerge {
  int quad, row, rows;
  bool owns;
  __device__ __forceinline__ static RingMerge of(const RingTile& ring, const RingSlice& s, int channels) {
    const int t = static_cast<int>(threadIdx.x), quads = channels / 4;
    const int rows = min(kRingThreads / quads, ring.rows.chunks);
    return {t % quads, t / quads, rows,
            t / quads < rows && s.tile_channel + t % quads * 4 < ring.rows.channels};
  }
};

}  // namespace kiln
