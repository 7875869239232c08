// Column sums and sums of squares of conv2d fwd's y, taken from a warp's wgmma accumulators as they are
// rounded:
//
//   S[k] = sum_m y[m,k],  Q[k] = sum_m y[m,k]^2,  m: the pixels of a block, y as rounded to bf16
//
// A thread keeps S and Q of its own columns of the tile in fp32, 8 * pair + 2 * (lane % 4) and the next,
// over all of the block's tiles. About 0 such sums lose nothing while they are short: where a variance is
// small beside the mean all values share an exponent, their squares have 16 bits, and the sum of 256 of them
// is exact. Rows that are no pixels must be zeros. At its end a block adds up its lanes in fp32 and its warps
// in double and writes S and Q of its columns, which conv2d_column_merge.cuh merges. Deterministic: fixed
// order.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace kiln {

// Where the sums go; a kernel parameter, null where there are none.
struct ColumnPartials {
  double2* sums = nullptr;  // [column tiles][slots][columns of a tile] S and Q of a block
  int slots = 0;            // blocks at work on one column tile
};

// How often a number of pairs can be halved, at most `most` times, and what is left of them.
constexpr int pairs_left(int pairs, int most) {
  for (; most > 0 && pairs % 2 == 0; --most) pairs /= 2;
  return pairs;
}

// Adds up the lanes that differ in bits kBit to 4 and have the same columns. Where pairs are even in number
// a lane keeps half of them and gives the others away. Returns the first of the pairs that it has then.
template <int kCount, int kBit, int kPairs>
__device__ __forceinline__ int join_lanes(float (&of)[kPairs][4], int first) {
  if constexpr (kBit < 4) {
    return first;
  } else if constexpr (kCount % 2 == 0) {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kBit;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float low = of[i][e], high = of[kHalf + i][e];
        of[i][e] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, kBit);
      }
    }
    return join_lanes<kHalf, kBit / 2>(of, first + (upper ? kHalf : 0));
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) of[i][e] += __shfl_xor_sync(0xffffffffu, of[i][e], kBit);
    }
    return join_lanes<kCount, kBit / 2>(of, first);
  }
}

constexpr int kColumnSumsBarrier = 7;  // kernels use others

// A thread's sums of kPairs pairs of columns.
template <int kPairs>
struct ColumnSums {
  static constexpr int kColumns = kPairs * 8, kLeft = pairs_left(kPairs, 3);
  float of[kPairs][4] = {};  // S of both columns, Q of both

  // `rounded`: the two bf16 values of a row.
  __device__ __forceinline__ void add(int pair, uint32_t rounded) {
    const float low = __uint_as_float(rounded << 16), high = __uint_as_float(rounded & 0xffff0000u);
    of[pair][0] += low;
    of[pair][1] += high;
    of[pair][2] = fmaf(low, low, of[pair][2]);
    of[pair][3] = fmaf(high, high, of[pair][3]);
  }

  // The end of a block, threads 0 to 32 * kWarps - 1 together: named barrier kColumnSumsBarrier is theirs,
  // and `scratch` (a shared address, 16 bytes aligned, kWarps * kColumns * 8 bytes) what no thread uses any
  // more once all are here. `slot`: which of the column tile's blocks.
  template <int kWarps>
  __device__ __forceinline__ void write(uint32_t scratch, const ColumnPartials& out, int tile, int slot) {
    const auto sync = [] {
      asm volatile("bar.sync %0, %1;\n" ::"n"(kColumnSumsBarrier), "n"(kWarps * 32) : "memory");
    };
    auto* shared = static_cast<float4*>(__cvta_shared_to_generic(scratch));  // [kWarps][kPairs * 4]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = join_lanes<kPairs, 16>(of, 0);
    sync();  // shared memory is free
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      shared[(warp * kPairs + first + i) * 4 + lane % 4] =
          make_float4(of[i][0], of[i][1], of[i][2], of[i][3]);
    }
    sync();  // the warps' sums are written
    const auto* sums = reinterpret_cast<const float*>(shared);
#pragma unroll
    for (int column = threadIdx.x; column < kColumns; column += kWarps * 32) {
      double s = 0.0, q = 0.0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        const float* from = sums + (i * kPairs * 4 + column / 2) * 4 + column % 2;
        s += from[0], q += from[2];
      }
      out.sums[(static_cast<size_t>(tile) * out.slots + slot) * kColumns + column] = make_double2(s, q);
    }
  }
};

// A Config's tiles with sums: the plain kernel of such tiles counts.
template <class Config>
struct CountedTiles : Config {
  static constexpr bool kCounts = true;
};

// The sums of a thread in kernels of Config: none, a placeholder, where it does not count.
template <class Config>
using TileSums = ColumnSums<(Config::kCounts ? Config::kBN / 8 : 1)>;

// What becomes of rounded pairs where nothing counts them. `at`: number of the pair among a warp's.
struct NotCounted {
  __device__ __forceinline__ void operator()(int /*at*/, uint32_t /*rounded*/) const {}
};

}  // namespace kiln
