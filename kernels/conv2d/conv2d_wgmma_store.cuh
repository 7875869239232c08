// How the accumulators of wgmma products leave a warp that stores them itself, a slice of 16 rows x
// kColumnSpan columns at a time:
//
//   out[m, j] = finish(sum[m, j], joined[m, j])
//
// `joined` is a tensor of out's shape, or there is none: the old values of +=, a residual, or x where results
// go back through an activation. A slice passes through the warp's own staging tile in shared memory, so that
// a thread moves 16-byte chunks, chunk lane % kChunks of rows lane / kChunks + turn * kRowsAtOnce, and the
// accesses to a row join. What is joined is asked for early and for several chunks at a time, before the last
// products are done and while slices before are stored: each wait for memory adds to a block's time.
// A kernel names the slices of a warp by a function slices(visit), which calls visit(slice, place) for each:
// place(turn) is the element of out where this thread's chunk begins, -1 beyond the edge.
#pragma once

#include "kernels/conv2d/conv2d_column_sums.cuh"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

// An index from which the places of a slice are computed again at each visit: kept from one to the next,
// those of all slices would take registers that accumulators need.
__device__ __forceinline__ int computed_again(int index) {
  asm volatile("" : "+r"(index));
  return index;
}

// This thread's chunks of what is joined to kSlices slices, kHeld slices at a time in registers, where they
// wait for memory under the products and stores before; 0, and a slice is asked for when its turn has come.
template <int kColumnSpan, int kSlices, int kHeld>
struct JoinedSlices {
  static constexpr int kChunks = kColumnSpan / 8, kRowsAtOnce = 32 / kChunks, kTurns = 16 / kRowsAtOnce;
  static_assert(kHeld >= 0 && kHeld <= kSlices, "a slice has registers of its own");
  uint4 chunks[kHeld > 0 ? kHeld : 1][kTurns];

  // Starts the loads of a slice.
  template <class Place>
  __device__ __forceinline__ void load(int slice, const bf16* joined, const Place& place) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const ptrdiff_t at = place(i);
      if (at >= 0) chunks[slice % kHeld][i] = *reinterpret_cast<const uint4*>(joined + at);
    }
  }
  // Those of the first slices, when the last products have started.
  template <class Slices>
  __device__ __forceinline__ void begin(const bf16* joined, const Slices& slices) {
    if constexpr (kHeld > 0) {
      slices([&](int slice, const auto& place) {
        if (slice < kHeld) load(slice, joined, place);
      });
    }
  }
  // Puts a slice at staged(turn), and starts the loads of the one that takes its registers.
  template <class Slices, class Place, class Staged>
  __device__ __forceinline__ void stage(int slice, const bf16* joined, const Slices& slices,
                                        const Place& place, const Staged& staged) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kTurns; ++i) *staged(i) = chunks[slice % kHeld][i];
      slices([&](int next, const auto& next_place) {
        if (next == slice + kHeld) load(next, joined, next_place);
      });
    } else {
      uint4 now[kTurns];
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {  // no branch, at which the loads before it would be waited for
        const ptrdiff_t at = place(i);
        now[i] = *reinterpret_cast<const uint4*>(joined + (at < 0 ? 0 : at));
      }
#pragma unroll
      for (int i = 0; i < kTurns; ++i) *staged(i) = now[i];
    }
  }
};

// Those of a tile of Config.
template <class Config, int kHeld>
using JoinedTile =
    JoinedSlices<Config::kColumnSpan, Config::kMTiles * Config::kBN / Config::kColumnSpan, kHeld>;

// Writes a slice from its accumulators `acc`, the first of which are those of column `column` of the tile.
// finish(column, sums, joined): what is rounded for `column` and the next. stage(staged): puts what is
// joined, if `joins`, into the staging tile; kRead pairs of chunks are read back from there at once.
// count(at, pair): sees each pair as rounded; two of each pair of columns.
template <int kColumnSpan, int kRead, class Finish, class Place, class Stage, class Count>
__device__ __forceinline__ void store_slice(const float* acc, unsigned char* staging, bool joins,
                                            const Stage& stage, int column, const Finish& finish, bf16* out,
                                            const Place& place, const Count& count) {
  using Tile = SwizzledTile<kColumnSpan>;
  constexpr int kChunks = kColumnSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = computed_again(threadIdx.x % 32);
  const auto staged = [&](int turn) {
    return reinterpret_cast<uint4*>(staging +
                                    Tile::offset(turn * kRowsAtOnce + lane / kChunks, lane % kChunks));
  };
  // Two chunks of 8 columns are four 8x8 matrices, of which lanes hold what they hold of the accumulators:
  // [0], [1] are rows 0-7 and 8-15 of one chunk, [2], [3] of the next.
  const auto matrices = [&](int pair) {
    return smem_address(staging) + Tile::offset(lane % 16, 2 * pair + lane / 16);
  };
  const int first = column + 2 * (lane % 4);
  if (joins) {
    stage(staged);
    __syncwarp();
  }
  uint32_t old[kRead][4] = {};
#pragma unroll
  for (int j = 0; j < kChunks / 2; ++j) {
    if (joins && j % kRead == 0) {
#pragma unroll
      for (int i = 0; i < kRead; ++i) ldmatrix_x4<false>(old[i], matrices(j + i));
      __syncwarp();  // read by the warp: results may take their place
    }
    uint32_t results[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = 2 * j + i / 2;
      const float* v = &acc[4 * chunk + i % 2 * 2];
      const uint32_t pair = old[j % kRead][i];
      const float2 add = make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
      const float2 result = finish(first + chunk * 8, make_float2(v[0], v[1]), add);
      const __nv_bfloat162 rounded = __floats2bfloat162_rn(result.x, result.y);
      results[i] = *reinterpret_cast<const uint32_t*>(&rounded);
      count(2 * chunk + i % 2, results[i]);
    }
    stmatrix_x4(matrices(j), results);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
    const ptrdiff_t at = place(i);
    if (at >= 0) *reinterpret_cast<uint4*>(out + at) = *staged(i);
  }
  __syncwarp();  // read by the warp: the next slice may overwrite it
}

// Writes a warp's slices, of kM times 16 rows of 2 * kN columns; `held` is what is joined, if `joined`.
// count(at, pair): as in store_slice(), of the tile's row of slices.
template <int kColumnSpan, int kSlices, int kHeld, int kM, int kN, class Slices, class Finish,
          class Count = NotCounted>
__device__ __forceinline__ void store_slices(const float (&acc)[kM][kN], unsigned char* staging,
                                             JoinedSlices<kColumnSpan, kSlices, kHeld>& held,
                                             const bf16* joined, bf16* out, const Slices& slices,
                                             const Finish& finish, const Count& count = {}) {
  constexpr int kAcross = 2 * kN / kColumnSpan;
  static_assert(kSlices == kM * kAcross, "the accumulators are whole slices");
  constexpr int kRead = kHeld > 1 || kM * kN <= 64 ? kColumnSpan / 16 : 1;  // as registers allow
  slices([&](int slice, const auto& place) {
    const int column = slice % kAcross * kColumnSpan;
    const auto stage = [&](const auto& staged) { held.stage(slice, joined, slices, place, staged); };
    store_slice<kColumnSpan, kRead>(acc[slice / kAcross] + column / 2, staging, joined != nullptr, stage,
                                    column, finish, out, place,
                                    [&](int at, uint32_t pair) { count(column / 4 + at, pair); });
  });
}

// The slices of warp `warp` % 4 of a warpgroup whose tile is kMTiles x 64 rows from `first_row`, which follow
// each other in `out`, and kBN columns from `first_column`; the warp has 16 rows of each 64.
template <class Config, class Visit>
__device__ __forceinline__ void for_row_slices(int warp, int first_row, int first_column, int rows,
                                               int columns, const Visit& visit) {
  constexpr int kSpan = Config::kColumnSpan, kAcross = Config::kBN / kSpan;
  constexpr int kChunks = kSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int slice = 0; slice < Config::kMTiles * kAcross; ++slice) {
    const int first = computed_again(first_row + slice / kAcross * 64 + warp % 4 * 16 + lane / kChunks);
    const int chunk = first_column + slice % kAcross * kSpan + lane % kChunks * 8;
    visit(slice, [&](int turn) -> ptrdiff_t {
      const int row = first + turn * kRowsAtOnce;
      return row < rows && chunk < columns ? static_cast<ptrdiff_t>(row) * columns + chunk : -1;
    });
  }
}

// What two sums become, for store_slice(); one rounding follows.
struct SumFinish {
  __device__ __forceinline__ float2 operator()(int, float2 sum, float2) const { return sum; }
};
struct AddFinish {
  __device__ __forceinline__ float2 operator()(int, float2 sum, float2 old) const {
    return make_float2(sum.x + old.x, sum.y + old.y);
  }
};
// What goes back through an activation: results without a slope become 0.
struct GateFinish {
  Conv2dGate gate;
  __device__ __forceinline__ float2 operator()(int, float2 sum, float2 x) const {
    return make_float2(gate.passes(x.x) ? sum.x : 0.0f, gate.passes(x.y) ? sum.y : 0.0f);
  }
};
// Of a tile from `first_column` on. Columns are even in number.
struct BiasFinish {
  const float* bias;  // [K] or null
  int first_column, columns;
  __device__ __forceinline__ float2 operator()(int column, float2 sum, float2) const {
    column += first_column;
    if (!bias || column >= columns) return sum;
    const float2 add = *reinterpret_cast<const float2*>(bias + column);
    return make_float2(sum.x + add.x, sum.y + add.y);
  }
};
struct FusedFinish {
  const Conv2dEpilogue& e;
  int first_column, columns;
  __device__ __forceinline__ float2 operator()(int column, float2 sum, float2 residual) const {
    const int real = first_column + column < columns ? first_column + column : 0;
    const float2 scale = e.scale_pair(real), bias = e.bias_pair(real);
    return make_float2(e.finish(sum.x, scale.x, bias.x, residual.x),
                       e.finish(sum.y, scale.y, bias.y, residual.y));
  }
};

// What is joined to the results of a product of shape `g`, a WgmmaShape; null without.
template <bool kDgrad, bool kFused, class Shape>
__device__ __forceinline__ const bf16* joined_tensor(const Shape& g, const Conv2dEpilogue& e,
                                                     const bf16* out) {
  if constexpr (kFused) {
    return static_cast<const bf16*>(e.residual);
  } else {
    return !kDgrad ? nullptr : g.gate.x ? g.gate.x : g.accumulate ? out : nullptr;
  }
}

// Writes a warp's slices of a tile from `first_column`. Each case of dgrad is code of its own, so that a
// launch runs through little: it is fetched as it runs.
template <bool kDgrad, bool kFused, class Acc, class Held, class Shape, class Slices>
__device__ __forceinline__ void store_product(const Acc& acc, unsigned char* staging, Held& held,
                                              const bf16* joined, bf16* out, const float* bias,
                                              int first_column, const Conv2dEpilogue& e, const Shape& g,
                                              const Slices& slices) {
  const auto store = [&](const bf16* with, const auto& finish) {
    store_slices(acc, staging, held, with, out, slices, finish);
  };
  if constexpr (kFused) {
    store(joined, FusedFinish{e, first_column, g.columns});
  } else if constexpr (!kDgrad) {
    store(nullptr, BiasFinish{bias, first_column, g.columns});
  } else if (!joined) {
    store(nullptr, SumFinish{});
  } else if (g.gate.x) {
    store(joined, GateFinish{g.gate.of});
  } else {
    store(joined, AddFinish{});
  }
}

}  // namespace kiln
