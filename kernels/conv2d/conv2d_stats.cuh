// Mean and biased variance of each channel of conv2d fwd's y, taken while its tiles lie in shared memory:
//
//   mean[k] = sum_m y[m,k] / M,   var[k] = sum_m (y[m,k] - mean[k])^2 / M,   m: pixels, y as rounded to bf16
//
// A warp hands 16 rows x 8 columns of bf16 at a time to one mma.sync: the transposed columns and eight rows
// of ones, times the columns. On the product's diagonal are the sums of squares, in its lower half the sums.
// Sums of at most kStatsRows rows become (rows, mean, M2) in fp32 and are merged from then on, a lane owning
// every 32nd column of its warp's tiles. About 0 such short sums lose nothing: where a variance is small
// beside the mean all values share an exponent, their squares have 16 bits, and 256 of them fit fp32's 24.
// Rows that are no pixels must be zeros. A block keeps to one column tile; at its end the warps'
// values are merged in shared memory, and the last block of a column tile merges those of all, both in a
// fixed order: deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#pragma once

#include "kernels/common/mma.cuh"

namespace kiln {

constexpr int kStatsRows = 256;
constexpr int kStatsBarrier = 7;  // kernels use others

// Where statistics go; a kernel parameter, all null where there are none.
struct Conv2dStats {
  float2* partials;   // [column tiles][columns of a tile][slots] mean and M2 of a block's rows
  float* counts;      // [column tiles][slots] those rows
  unsigned* arrived;  // [column tiles] blocks that are done; 0 before and after a launch
  float* mean;        // [K]
  float* var;         // [K]
  int slots;          // blocks at work on one column tile
};

// What merging `more` rows with `count` others takes: mean += share * d and M2 += d^2 * weight + M2 of the
// more, d the distance of their means.
struct MomentFactors {
  float share, weight;
  __device__ __forceinline__ MomentFactors(float count, float more) {
    share = more > 0.0f ? more / (count + more) : 0.0f;
    weight = count * share;
  }
  __device__ __forceinline__ void merge(float& mean, float& m2, float other_mean, float other_m2) const {
    const float d = other_mean - mean;
    mean += d * share;
    m2 += d * d * weight + other_m2;
  }
};

// Statistics of a warp's rows of kColumns columns. kHeld columns are summed at a time: all of them, and sums
// stay in registers from tile to tile, or a part, whose sums are folded in before the next part's.
template <int kColumns, int kHeld>
struct WarpStats {
  static constexpr bool kKept = kHeld == kColumns;
  static_assert(kColumns % kHeld == 0 && kHeld % 32 == 0, "a lane owns every 32nd column");
  float count = 0.0f;                                      // rows in mean and m2
  float mean[kColumns / 32] = {}, m2[kColumns / 32] = {};  // of columns lane + 32 * i
  float sums[kHeld / 8][4] = {};
  int rows = 0;  // in sums, where they stay

  // Adds 16 rows of the 16 columns from held column `held` on, 8x8 matrix l/8 at the addresses of lanes 8 *
  // (l/8) on: rows 0-7 and 8-15 of the first 8 columns, then of the others.
  __device__ __forceinline__ void add(int held, uint32_t address) {
    constexpr uint32_t kOnes = 0x3f803f80u;
    uint32_t t[4];
    ldmatrix_x4<true>(t, address);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t a[4] = {t[2 * i], kOnes, t[2 * i + 1], kOnes};
      mma_bf16(sums[held / 8 + i], a, t[2 * i], t[2 * i + 1]);
    }
  }

  // Merges the sums of `more` rows into the held columns from `first` on. The lane with column c of an 8x8
  // diagonal is 4c + c/2.
  __device__ __forceinline__ void fold(int first, float more) {
    if (!(more > 0.0f)) return;  // then the sums are 0
    const MomentFactors factors(count, more);
    const int lane = threadIdx.x % 32, from = lane % 8 * 4 + lane % 8 / 2;
    const bool odd = lane / 4 % 2;
#pragma unroll
    for (int i = 0; i < kHeld / 32; ++i) {
      float sum = 0.0f, square = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* v = sums[4 * i + j];
        const float q = __shfl_sync(0xffffffffu, odd ? v[1] : v[0], from);
        const float s = __shfl_sync(0xffffffffu, odd ? v[3] : v[2], from);
        if (lane / 8 == j) sum = s, square = q;
      }
      const float middle = sum / more;
      factors.merge(mean[first / 32 + i], m2[first / 32 + i], middle,
                    fmaxf(fmaf(-middle, sum, square), 0.0f));
    }
#pragma unroll
    for (auto& four : sums) four[0] = four[1] = four[2] = four[3] = 0.0f;
  }

  // Of sums that stay: `more` rows were added. `next`: the most that the next call adds.
  __device__ __forceinline__ void added(int more, int next) {
    rows += more;
    if (rows + next > kStatsRows) fold_kept();
  }
  __device__ __forceinline__ void fold_kept() {
    fold(0, static_cast<float>(rows));
    count += static_cast<float>(rows);
    rows = 0;
  }
};

// The last block's merge of column tile `tile`: a warp has four columns at a time, a lane every 32nd slot.
template <int kColumns, int kWarps>
__device__ __forceinline__ void merge_partials(const Conv2dStats& out, int tile, int columns) {
  const int lane = threadIdx.x % 32;
  const float* counts = out.counts + static_cast<size_t>(tile) * out.slots;
  for (int column = threadIdx.x / 32 * 4; column < kColumns; column += kWarps * 4) {
    if (tile * kColumns + column >= columns) return;
    const float2* from = out.partials + (static_cast<size_t>(tile) * kColumns + column) * out.slots;
    float count = 0.0f, mean[4] = {}, m2[4] = {};
#pragma unroll 5
    for (int slot = lane; slot < out.slots; slot += 32) {
      const float more = __ldcg(counts + slot);
      const MomentFactors factors(count, more);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 other = __ldcg(from + static_cast<size_t>(j) * out.slots + slot);
        factors.merge(mean[j], m2[j], other.x, other.y);
      }
      count += more;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float more = __shfl_down_sync(0xffffffffu, count, offset);
      const MomentFactors factors(count, more);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float other = __shfl_down_sync(0xffffffffu, mean[j], offset);
        factors.merge(mean[j], m2[j], other, __shfl_down_sync(0xffffffffu, m2[j], offset));
      }
      count += more;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = tile * kColumns + column + j;
      if (lane == 0 && k < columns) out.mean[k] = mean[j], out.var[k] = m2[j] / count;
    }
  }
}

// The end of a block, threads 0 to 32 * kWarps - 1 together: named barrier kStatsBarrier is theirs, and
// `scratch` (a shared address, 8 bytes aligned) what no thread uses any more once all are here. `slot`: which
// of the column tile's blocks.
template <int kWarps, int kColumns, int kHeld>
__device__ __forceinline__ void finish_stats(WarpStats<kColumns, kHeld>& stats, uint32_t scratch,
                                             const Conv2dStats& out, int tile, int slot, int columns) {
  const auto sync = [] {
    asm volatile("bar.sync %0, %1;\n" ::"n"(kStatsBarrier), "n"(kWarps * 32) : "memory");
  };
  auto* moments = static_cast<float2*>(__cvta_shared_to_generic(scratch));  // [kWarps][kColumns]
  auto* counts = reinterpret_cast<float*>(moments + kWarps * kColumns);     // [kWarps]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (WarpStats<kColumns, kHeld>::kKept) stats.fold_kept();
  sync();  // shared memory is free
#pragma unroll
  for (int i = 0; i < kColumns / 32; ++i) {
    moments[warp * kColumns + i * 32 + lane] = make_float2(stats.mean[i], stats.m2[i]);
  }
  if (lane == 0) counts[warp] = stats.count;
  sync();  // the warps' values are written
  float count = 0.0f;
  for (int column = threadIdx.x; column < kColumns; column += kWarps * 32) {
    float mean = 0.0f, m2 = 0.0f;
    count = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float2 other = moments[i * kColumns + column];
      MomentFactors(count, counts[i]).merge(mean, m2, other.x, other.y);
      count += counts[i];
    }
    out.partials[(static_cast<size_t>(tile) * kColumns + column) * out.slots + slot] = make_float2(mean, m2);
  }
  if (threadIdx.x == 0) out.counts[static_cast<size_t>(tile) * out.slots + slot] = count;
  __threadfence();
  sync();  // the block's partial is written
  const bool last =
      threadIdx.x == 0 && atomicAdd(out.arrived + tile, 1u) + 1 == static_cast<unsigned>(out.slots);
  unsigned any;  // whether it was for thread 0
  asm volatile(
      "{\n.reg .pred mine, one;\nsetp.ne.u32 mine, %1, 0;\nbar.red.or.pred one, %2, %3, mine;\n"
      "selp.u32 %0, 1, 0, one;\n}\n"
      : "=r"(any)
      : "r"(static_cast<unsigned>(last)), "n"(kStatsBarrier), "n"(kWarps * 32)
      : "memory");
  if (any == 0) return;
  __threadfence();
  merge_partials<kColumns, kWarps>(out, tile, columns);
  if (threadIdx.x == 0) out.arrived[tile] = 0;
}

}  // namespace kiln
