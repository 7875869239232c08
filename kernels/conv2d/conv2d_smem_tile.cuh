// The stages that the three smem_tile passes share: an implicit GEMM on FP32 FMA units.
//
// Each pass is a product out[m,n] = sum_d A[d,m] * B[d,n] whose operands are gathered from the tensors as
// they are needed. A block owns a kM x kN tile of `out` and walks d in steps of kDepth. The step's slices of
// A and B lie in shared memory as fp32, [kDepth][kM] and [kDepth][kN]; there are two of each: while the block
// multiplies one, the next step's elements are on their way from global memory into registers, and are stored
// into the other.
//
// A warp owns 8*kTm x 4*kTn of the tile as 8 x 4 lanes; a lane owns kTm x kTn elements of `out` in registers,
// in groups of 4 x 4, so that a group is one 16-byte read and the lanes of a warp read neighbouring groups.
#pragma once

#include "kernels/common/fast_divisor.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

template <int M, int N, int Depth, int Tm, int Tn, int Blocks>
struct SmemTile {
  static constexpr int kM = M, kN = N, kDepth = Depth, kTm = Tm, kTn = Tn;
  static constexpr int kBlocks = Blocks;  // wanted on a multiprocessor; bounds the registers of a thread
  static constexpr int kWarpsM = M / (8 * Tm);
  static constexpr int kWarpsN = N / (4 * Tn);
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static_assert(M % (8 * Tm) == 0 && N % (4 * Tn) == 0, "the tile is whole warp tiles");
  static_assert(Tm % 4 == 0 && Tn % 4 == 0, "a lane owns groups of 4 x 4");
  static_assert(M % 32 == 0 && N % 32 == 0, "swizzles permute columns within 32");
};

// The place of a thread's accumulators: element (i, j) is row m(i), column n(j) of the block's tile.
template <class Tile>
struct LanePlace {
  int m0, n0;
  __device__ LanePlace() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    m0 = warp % Tile::kWarpsM * 8 * Tile::kTm + lane % 8 * 4;
    n0 = warp / Tile::kWarpsM * 4 * Tile::kTn + lane / 8 * 4;
  }
  __device__ int m(int i) const { return m0 + i / 4 * 32 + i % 4; }
  __device__ int n(int j) const { return n0 + j / 4 * 16 + j % 4; }
};

// Column c of depth d of a slice that was stored transposed from vectors of V lies at c ^ swizzle<V>(d): the
// lanes of a warp store V vectors of several rows at once, and would otherwise meet in the same banks. 0: not
// swizzled.
template <int V>
__host__ __device__ constexpr int swizzle(int d) {
  return V == 0 ? 0 : V == 1 ? d % 4 * 8 : d / V % 2 * 16;
}

// Which elements a thread moves when the source is contiguous along d and the slice wants it across: `vector`
// of kDepth / V along d, rows row(0..kPasses-1) of kRows. Neighbouring lanes take neighbouring vectors of a
// row (kLanes) and then neighbouring rows.
template <class Tile, int V, int kRows>
struct TransposeMap {
  static constexpr int kVectors = Tile::kDepth / V;
  static constexpr int kLanes = V == 1 ? 4 : kVectors < 2 ? kVectors : 2;
  static constexpr int kGroups = kVectors / kLanes;
  static constexpr int kWarps = Tile::kThreads / 32;
  static_assert(kWarps % kGroups == 0, "every vector of a row has a warp");
  static constexpr int kStep = 32 / kLanes * (kWarps / kGroups);  // rows of one pass
  static constexpr int kPasses = (kRows + kStep - 1) / kStep;

  int vector, first_row;
  __device__ TransposeMap() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    vector = lane % kLanes + kLanes * (warp % kGroups);
    first_row = lane / kLanes + 32 / kLanes * (warp / kGroups);
  }
  __device__ int row(int pass) const { return first_row + pass * kStep; }
  __device__ static bool inside(int row) { return kRows % kStep == 0 || row < kRows; }

  template <class T>
  __device__ void store(const Vec<T, V>& v, int pass, float* slice) const {  // [kDepth][kRows]
    if (!inside(row(pass))) return;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      slice[(vector * V + e) * kRows + (row(pass) ^ swizzle<V>(vector * V))] = v[e];
    }
  }
};

// The same when the source is contiguous along the slice's columns: vector `column` of kColumns, depths
// depth(0..kPasses-1). Not swizzled.
template <class Tile, int V, int kColumns>
struct DirectMap {
  static constexpr int kVectors = kColumns / V;
  static constexpr int kStep = Tile::kThreads / kVectors;  // depths of one pass
  static_assert(Tile::kThreads % kVectors == 0, "a pass is whole rows");
  static constexpr int kPasses = (Tile::kDepth + kStep - 1) / kStep;

  int column, first_depth;
  __device__ DirectMap() : column(threadIdx.x % kVectors * V), first_depth(threadIdx.x / kVectors) {}
  __device__ int depth(int pass) const { return first_depth + pass * kStep; }
  __device__ static bool inside(int depth) { return Tile::kDepth % kStep == 0 || depth < Tile::kDepth; }

  template <class T>
  __device__ void store(const Vec<T, V>& v, int pass, float* slice) const {  // [kDepth][kColumns]
    if (!inside(depth(pass))) return;
    constexpr int kWidth = V < 4 ? V : 4;
#pragma unroll
    for (int e = 0; e < V; e += kWidth) {
      Vec<float, kWidth> out;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) out.v[i] = v[e + i];
      out.store(slice + depth(pass) * kColumns + column + e);
    }
  }
};

// acc += A^T * B of one step. Va, Vb: the slices' swizzles.
template <class Tile, int Va, int Vb>
__device__ __forceinline__ void accumulate(const float* a,  // [kDepth][kM]
                                           const float* b,  // [kDepth][kN]
                                           float (&acc)[Tile::kTm][Tile::kTn]) {
  const LanePlace<Tile> place;
#pragma unroll
  for (int d = 0; d < Tile::kDepth; ++d) {
    Vec<float, 4> am[Tile::kTm / 4], bn[Tile::kTn / 4];
#pragma unroll
    for (int g = 0; g < Tile::kTm / 4; ++g) {
      am[g] = Vec<float, 4>::load(a + d * Tile::kM + (place.m(4 * g) ^ swizzle<Va>(d)));
    }
#pragma unroll
    for (int g = 0; g < Tile::kTn / 4; ++g) {
      bn[g] = Vec<float, 4>::load(b + d * Tile::kN + (place.n(4 * g) ^ swizzle<Vb>(d)));
    }
#pragma unroll
    for (int i = 0; i < Tile::kTm; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kTn; ++j) acc[i][j] += am[i / 4].v[i % 4] * bn[j / 4].v[j % 4];
    }
  }
}

// The block's shared memory.
template <class Tile>
struct alignas(16) SmemSlices {
  float a[2][Tile::kDepth * Tile::kM];
  float b[2][Tile::kDepth * Tile::kN];
};

// The whole walk over d. A and B have load(step), global memory to registers, zeros where there is nothing,
// and store(slice), registers to shared memory.
template <class Tile, int Va, int Vb, class A, class B>
__device__ __forceinline__ void multiply(A& a, B& b, int steps, SmemSlices<Tile>& smem,
                                         float (&acc)[Tile::kTm][Tile::kTn]) {
  a.load(0);
  b.load(0);
  a.store(smem.a[0]);
  b.store(smem.b[0]);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int now = step & 1;
    if (step + 1 < steps) {
      a.load(step + 1);
      b.load(step + 1);
    }
    accumulate<Tile, Va, Vb>(smem.a[now], smem.b[now], acc);
    if (step + 1 < steps) {  // the other slices were last read before the previous barrier
      a.store(smem.a[now ^ 1]);
      b.store(smem.b[now ^ 1]);
    }
    __syncthreads();
  }
}

// v = 0 where x[0..3] has no slope, for those below `valid`.
template <class T>
__device__ __forceinline__ void gate4(const T* x, float (&v)[4], int valid, bool vector,
                                      const Conv2dGate& gate) {
  Vec<T, 4> at{};
  if (vector && valid >= 4) {
    at = Vec<T, 4>::load(x);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < valid) at.v[j] = x[j];
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = gate.passes(at[j]) ? v[j] : 0.0f;
}

// out[0..3] = v (+ out) for those below `valid`; one access where `vector`, which needs out aligned to 4
// elements.
template <class T>
__device__ __forceinline__ void store4(T* out, const float (&v)[4], int valid, bool vector, bool accumulate) {
  if (vector && valid >= 4) {
    Vec<T, 4> r{};
    if (accumulate) r = Vec<T, 4>::load(out);
#pragma unroll
    for (int j = 0; j < 4; ++j) r.set(j, v[j] + r[j]);
    r.store(out);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < valid) out[j] = from_float<T>(accumulate ? v[j] + to_float(out[j]) : v[j]);
    }
  }
}

}  // namespace kiln
