// The stages that the three register_tile passes share: an implicit GEMM in fp32 FMA, fed by cp.async.
//
//   out[m,n] = sum_d A[d,m] * B[d,n]
//
// A block owns a kM x kN tile of `out` and walks d in steps of 16. The step's slices of A and B lie in shared
// memory twice: while one pair is multiplied, 16-byte copies that pass no register fill the other. A slice
// keeps the order of its tensor, so that nothing is transposed on the way:
//   deep    the tensor is contiguous along d: [rows][16], the four chunks of a row swizzled
//   across  the tensor is contiguous along m or n: [16][rows]
// Either way a 16-byte read brings four values. A warp owns 8*kTm x 4*kTn results as 8 x 4 lanes, a lane kTm
// x kTn in registers: with 8 x 8 four reads feed 64 FMAs. Shared memory 16 to 48 KiB, deterministic.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/conv2d/conv2d_smem_tile.cuh"

namespace kiln {

template <int M, int N, int Tm, int Tn, int Blocks>
struct RegisterTile {
  static constexpr int kM = M, kN = N, kTm = Tm, kTn = Tn;
  static constexpr int kBlocks = Blocks;  // wanted on a multiprocessor; bounds the registers of a thread
  static constexpr int kDepth = 16, kChunks = kDepth / 4;
  static constexpr int kWarpsM = M / (8 * Tm), kWarpsN = N / (4 * Tn);
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kStageFloats = (M + N) * kDepth;
  static_assert(M % (8 * Tm) == 0 && N % (4 * Tn) == 0, "the tile is whole warp tiles");
  static_assert(Tm % 4 == 0 && Tn % 4 == 0, "a lane owns groups of 4 x 4");
  static_assert(2 * 4 * kStageFloats + 8 * M <= 48 * 1024, "static shared memory");
};

// Place of a deep slice's chunk of four values, in floats. The eight lanes that share a read's columns of A
// read eight neighbouring rows, two to a line of 128 bytes (kShift 1); those of B four rows, four apart
// (kShift 2). The swizzle puts either into different banks.
template <int kShift>
__device__ __forceinline__ int deep_place(int row, int chunk) {
  return row * 16 + ((chunk ^ (row >> kShift & 3)) << 2);
}

// The place of a thread's accumulators in the block's tile. In the order of lanes each two neighbours share
// their row of A, and each two at distance 2 their column of B, which is what lets a 16-byte read of a warp
// take half as many passes.
template <class Tile, bool kDeepA>
struct RegisterPlace {
  int lane_m, lane_n, warp_m, warp_n;
  __device__ RegisterPlace() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    lane_m = (lane >> 1 & 3) | lane >> 4 << 2;
    lane_n = (lane & 1) | (lane >> 3 & 1) << 1;
    warp_m = warp % Tile::kWarpsM * 8 * Tile::kTm;
    warp_n = warp / Tile::kWarpsM * 4 * Tile::kTn;
  }
  __device__ int m(int i) const {
    return warp_m + (kDeepA ? lane_m + i * 8 : lane_m * 4 + i / 4 * 32 + i % 4);
  }
  __device__ int n(int j) const { return warp_n + lane_n * 4 + j / 4 * 16 + j % 4; }
};

// Four depths of a thread's kT rows of one slice: value(i, e) is row i at depth 4*chunk + e.
template <bool kDeep, int kT>
struct Fragment {
  Vec<float, 4> v[kDeep ? kT : kT / 4][kDeep ? 1 : 4];
  __device__ __forceinline__ float value(int i, int e) const {
    return kDeep ? v[i][0].v[e] : v[i / 4][e].v[i % 4];
  }
};

// acc += A^T * B of one step.
template <class Tile, bool kDeepA, bool kDeepB>
__device__ __forceinline__ void register_accumulate(const float* a,  // [kM][16] or [16][kM]
                                                    const float* b,  // [kN][16] or [16][kN]
                                                    float (&acc)[Tile::kTm][Tile::kTn]) {
  constexpr int kTm = Tile::kTm, kTn = Tile::kTn;
  const RegisterPlace<Tile, kDeepA> place;
  const int a0 = kDeepA ? deep_place<1>(place.m(0), 0) : place.m(0);
  const int b0 = kDeepB ? deep_place<2>(place.n(0), 0) : place.n(0);
#pragma unroll
  for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
    Fragment<kDeepA, kTm> am;
    if constexpr (kDeepA) {
#pragma unroll
      for (int i = 0; i < kTm; ++i) am.v[i][0] = Vec<float, 4>::load(a + (a0 ^ chunk * 4) + i * 8 * 16);
    }
    if constexpr (kDeepB) {
#pragma unroll
      for (int j = 0; j < kTn; ++j) {
        const auto bn = Vec<float, 4>::load(b + (b0 ^ chunk * 4) + (j / 4 * 16 + j % 4) * 16);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int i = 0; i < kTm; ++i) acc[i][j] += am.value(i, e) * bn.v[e];
        }
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int d = chunk * 4 + e;
        if constexpr (!kDeepA) {
#pragma unroll
          for (int g = 0; g < kTm / 4; ++g) am.v[g][e] = Vec<float, 4>::load(a + d * Tile::kM + a0 + g * 32);
        }
        Vec<float, 4> bn[kTn / 4];
#pragma unroll
        for (int g = 0; g < kTn / 4; ++g) bn[g] = Vec<float, 4>::load(b + d * Tile::kN + b0 + g * 16);
          // Both across: a row turns back where the last one ended, so that a value of B stays in the operand
          // cache beside the row's of A.
#pragma unroll
        for (int i = 0; i < kTm; ++i) {
#pragma unroll
          for (int n = 0; n < kTn; ++n) {
            const int j = kDeepA || i % 2 == 0 ? n : kTn - 1 - n;
            acc[i][j] += am.value(i, e) * bn[j / 4].v[j % 4];
          }
        }
      }
    }
  }
}

// The block's shared memory: two pairs of slices.
template <class Tile>
struct alignas(128) RegisterSlices {
  struct {
    float a[Tile::kM * Tile::kDepth], b[Tile::kN * Tile::kDepth];
  } pair[2];
};

// The whole walk over d. A and B have copy(step, slice), which starts the copies of one step's slice, zeros
// where there is nothing. A thread may read a slice after the barrier that follows its owners' waits, and
// that same barrier says that all have read the other pair.
template <class Tile, bool kDeepA, bool kDeepB, class A, class B>
__device__ __forceinline__ void register_multiply(const A& a, const B& b, int steps,
                                                  RegisterSlices<Tile>& smem,
                                                  float (&acc)[Tile::kTm][Tile::kTn]) {
  const auto copy = [&](int step) {
    a.copy(step, smem_address(smem.pair[step & 1].a));
    b.copy(step, smem_address(smem.pair[step & 1].b));
    cp_async_commit();
  };
  if (steps > 0) copy(0);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) copy(step + 1);
    register_accumulate<Tile, kDeepA, kDeepB>(smem.pair[step & 1].a, smem.pair[step & 1].b, acc);
  }
}

// Which taps of a window that starts at `first` and goes on in steps of kSign fall inside [0, extent): bit i
// for tap i. At most 15 taps.
template <int kSign>
__device__ __forceinline__ unsigned reached_taps(int first, int extent, int taps) {
  const int begin = max(kSign > 0 ? -first : first - extent + 1, 0);
  const int end = min(kSign > 0 ? extent - first : first + 1, taps);
  return begin < end ? (1u << end) - (1u << begin) : 0;
}

// A tap (i,j) as a mask that a window's two sets of taps, rows from bit 0 and columns from bit 16, must
// contain; kNoTap is in none.
constexpr int kMostTaps = 15;
constexpr unsigned kNoTap = 1u << 31;
__device__ __forceinline__ unsigned tap_mask(int i, int j) { return 1u << i | 0x10000u << j; }

// Copies of an across slice [16][kColumns]: a thread copies chunk `column` of the neighbouring depths
// depth(0..kPasses-1).
template <class Tile, int kColumns>
struct AcrossMap {
  static constexpr int kVectors = kColumns / 4;
  static constexpr int kStep = Tile::kThreads / kVectors;  // depths of one pass
  static_assert(Tile::kThreads % kVectors == 0, "a pass is whole rows");
  static constexpr int kPasses = (Tile::kDepth + kStep - 1) / kStep;

  int column, first_depth;
  __device__ AcrossMap()
      : column(threadIdx.x % kVectors * 4), first_depth(threadIdx.x / kVectors * kPasses) {}
  __device__ int depth(int pass) const { return first_depth + pass; }
  __device__ bool has(int pass) const { return Tile::kDepth % kStep == 0 || depth(pass) < Tile::kDepth; }
  __device__ uint32_t place(int pass) const {
    return static_cast<uint32_t>((depth(pass) * kColumns + column) * sizeof(float));
  }
};

// Copies of a deep slice [kRows][16]: a thread copies chunk `chunk` of rows row(0..kPasses-1).
template <class Tile, int kRows, int kShift>
struct DeepMap {
  static constexpr int kStep = Tile::kThreads / Tile::kChunks;  // rows of one pass
  static constexpr int kPasses = kRows / kStep;
  static_assert(kRows % kStep == 0 && kStep % 16 == 0, "passes are alike, up to a multiple of the swizzle");

  int chunk, first_row;
  uint32_t first_place;
  __device__ DeepMap() : chunk(threadIdx.x % Tile::kChunks), first_row(threadIdx.x / Tile::kChunks) {
    first_place = static_cast<uint32_t>(deep_place<kShift>(first_row, chunk) * sizeof(float));
  }
  __device__ int row(int pass) const { return first_row + pass * kStep; }
  __device__ uint32_t place(int pass) const { return first_place + pass * kStep * 64; }
};

}  // namespace kiln
