// The product of a 1x1 convolution with stride 1 on Hopper (sm_90a), where bytes and not FLOPs are the limit:
//
//   out[m, j] (+)= bias[j] + sum_i src[m, i] * filter(i, j)
//
// Rows m are pixels, columns j output channels, i source channels. A tile is 128 x kBN outputs. One producer
// thread starts plain TMA copies of src in slices of kBK channels (zeros beyond the last) into a ring as deep
// as shared memory allows. Three ways with the filter, whose column tile is the block's own: it stays in
// shared memory, loaded once a persistent block beside the first tile's slices; it streams through the ring
// beside src; or the slices are shared by two blocks of a cluster, which exchange half of their sums through
// distributed shared memory. Two consumer warpgroups multiply 64 rows each with wgmma and write bf16 into
// their own two staging tiles, which the copy engine stores while the next tile is multiplied; for += the
// engine first brings the old values into them, the fused kernel's (conv2d_epilogue.cuh) residual alike. A
// warpgroup never waits for the other one. With kCounts columns are summed as conv2d_column_sums.cuh does.
// Where the tile has all columns its rows are one stretch of memory, stored as lines of 128 bytes.
// Deterministic: one thread sums an output (with a cluster two, whose halves are added once), in a fixed
// order.
#pragma once

#include "kernels/common/early_launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/conv2d/conv2d_pointwise_smem.cuh"

namespace kiln {

// A block's work: one column tile, every `step`-th row tile, a range of slices.
struct PointwiseWalk {
  int rank, column_tile, row_tile, step, first_slice, slices;
  __device__ __forceinline__ explicit PointwiseWalk(const PointwiseShape& g) {
    const int item = blockIdx.x / g.splits;
    rank = blockIdx.x % g.splits;
    column_tile = item % g.column_tiles;
    row_tile = item / g.column_tiles;
    step = gridDim.x / g.splits / g.column_tiles;
    const int half = (g.slices + g.splits - 1) / g.splits;
    first_slice = rank * half;
    slices = rank == g.splits - 1 ? g.slices - first_slice : half;
  }
};

// A place in a ring whose length is known at run time; parities as in RingPosition.
struct PointwiseRing {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// The producer thread: fills stages in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void pointwise_produce(const CUtensorMap* src, const CUtensorMap* filter,
                                                  const PointwiseSmem<Config>& smem,
                                                  const PointwiseShape& g) {
  const PointwiseWalk walk(g);
  const int first_column = walk.column_tile * Config::kBN;
  PointwiseRing at;
  bool load_filter = true;
  for (int row_tile = walk.row_tile; row_tile < g.row_tiles; row_tile += walk.step) {
    for (int i = 0; i < walk.slices; ++i) {
      const int first_channel = (walk.first_slice + i) * Config::kBK;
      const uint32_t full = smem.full(at.stage), b = smem.b(at.stage, i);
      mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
      mbarrier_arrive_expect(full, Config::kABytes + (load_filter ? Config::kBBytes : 0));
      tma_load_3d(smem.a(at.stage), src, full, first_channel, row_tile * Config::kBM, 0);
      if (load_filter && kDgrad) {  // boxes of kBK rows (dy's channels) x kSpan columns
        constexpr int kBoxBytes = Config::kBK * Config::kSpan * 2;
#pragma unroll
        for (int box = 0; box < Config::kBN / Config::kSpan; ++box) {
          tma_load_3d(b + box * kBoxBytes, filter, full, first_column + box * Config::kSpan, first_channel,
                      0);
        }
      } else if (load_filter) {  // rows are columns of the product, kBK channels each
        tma_load_3d(b, filter, full, first_channel, first_column, 0);
      }
      at.advance(g.stages);
    }
    load_filter = !g.resident;
  }
}

// Starts the products of one slice for a warpgroup's 64 rows. `add`: 0 where this is the tile's first slice.
template <class Config, bool kDgrad>
__device__ __forceinline__ void multiply_slice(float (&acc)[Config::kBN / 2], uint32_t a_rows,
                                               uint32_t b_tile, int add) {
  const uint64_t a = k_major_descriptor<Config::kBK>(a_rows);
  const uint64_t b = kDgrad ? mn_major_descriptor<Config::kSpan>(b_tile, Config::kBK * Config::kSpan * 2)
                            : k_major_descriptor<Config::kBK>(b_tile);
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
    Wgmma<Config::kBN, 0, kDgrad>::multiply(
        acc, advance_descriptor(a, k16 * 32),
        advance_descriptor(b, k16 * (kDgrad ? 16 * Config::kSpan * 2 : 32)), k16 > 0 ? 1 : add);
  }
}

// Adds the sums of the cluster's other block. Block r keeps the rows of its warpgroup r and gives away the
// others, through the ring, which both blocks have read by then. True for the warpgroup that keeps its rows.
template <class Config>
__device__ __forceinline__ bool exchange_sums(float (&acc)[Config::kBN / 2], uint32_t ring, int group,
                                              int rank) {
  const uint32_t mine = ring + threadIdx.x % 128 * 16;  // 16 bytes a thread, again every 128 threads
  cluster_sync();
  if (group != rank) {
    uint32_t theirs;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(theirs) : "r"(mine), "r"(rank ^ 1));
#pragma unroll
    for (int i = 0; i < Config::kBN / 2; i += 4) {
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(theirs + i / 4 * 2048),
                   "f"(acc[i]), "f"(acc[i + 1]), "f"(acc[i + 2]), "f"(acc[i + 3])
                   : "memory");
    }
  }
  cluster_sync();
  if (group != rank) return false;
#pragma unroll
  for (int i = 0; i < Config::kBN / 2; i += 4) {
    float v[4];
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(mine + i / 4 * 2048)
                 : "memory");
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[i + e] += v[e];
  }
  return true;
}

__device__ __forceinline__ void group_sync(int group) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(group + 1) : "memory");
}

// A consumer warpgroup: multiplies its rows of each tile and hands them to the copy engine.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void pointwise_consume(const CUtensorMap* out, const PointwiseSmem<Config>& smem,
                                                  const float* bias, const StagedEpilogue<kFused>& fused,
                                                  const PointwiseShape& g) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group = warp / 4, lane = threadIdx.x % 32;
  const bool leader = threadIdx.x % 128 == 0;  // starts this warpgroup's stores, and the loads of old values
  const PointwiseWalk walk(g);
  const int first_column = walk.column_tile * Config::kBN;
  const bool stores = g.splits == 1 || group == walk.rank;
  bool adds = kDgrad && g.accumulate && stores;
  const CUtensorMap* old = out;
  if constexpr (kFused) {
    adds = fused.of.residual && stores, old = &fused.residual;
  } else if (kDgrad && fused.gated) {
    adds = stores, old = &fused.x;
  }
  const auto first_row = [&](int row_tile) { return row_tile * Config::kBM + group * Config::kGroupRows; };
  if (adds && leader) {
    load_old<Config>(old, smem.staging(group, 0), smem.old(group, 0), first_row(walk.row_tile), first_column,
                     g);
  }
  float acc[Config::kBN / 2] = {};
  PointwiseRing at;
  TileSums<Config> sums;
  int turn = 0;  // tiles done; their staging tiles alternate
  for (int row_tile = walk.row_tile; row_tile < g.row_tiles; row_tile += walk.step, ++turn) {
    int previous = 0;
    for (int i = 0; i < walk.slices; ++i) {
      mbarrier_wait(smem.full(at.stage), at.parity);
      pin_registers(acc);
      wgmma_fence();
      multiply_slice<Config, kDgrad>(acc, smem.a(at.stage) + group * Config::kABytes / Config::kGroups,
                                     smem.b(at.stage, i), i > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the products of the slice before are done: its stage may be filled again
      if (i > 0 && lane == 0) mbarrier_arrive(smem.empty(previous));
      previous = at.stage;
      at.advance(g.stages);
    }
    wgmma_wait<0>();
    pin_registers(acc);
    if (lane == 0) mbarrier_arrive(smem.empty(previous));
    if (g.splits > 1 && !exchange_sums<Config>(acc, smem.a(0), group, walk.rank)) break;

    const int buffer = turn & 1;
    const uint32_t staging = smem.staging(group, buffer);
    if (adds) {
      mbarrier_wait(smem.old(group, buffer), turn >> 1 & 1);
    } else {
      group_sync(group);  // the leader has seen this buffer's last store read it
    }
    constexpr bool kBehind = Config::kCounts && Config::kCountsBehind;
    [[maybe_unused]] uint32_t stored[kBehind ? Config::kBN / 4 : 1] = {};  // pairs of this tile
    if constexpr (Config::kCounts) {
      stage_rows<Config, false, false>(acc, staging, first_column, nullptr, fused, false, g,
                                       [&](int at, uint32_t pair) {
                                         if constexpr (kBehind) {
                                           stored[at] = pair;
                                         } else {
                                           sums.add(at / 2, pair);
                                         }
                                       });
    } else if (!kFused && !adds &&
               bias == nullptr) {  // a short way through the code: it is fetched as it runs
      stage_rows<Config, kDgrad, false>(acc, staging, first_column, nullptr, {}, false, g);
    } else {
      stage_rows<Config, kDgrad, kFused>(acc, staging, first_column, bias, fused, adds, g);
    }
    tma_store_fence();
    group_sync(group);  // the tile is written
    if (leader) {
      for_staged_boxes<Config>(staging, first_row(row_tile), first_column, g,
                               [&](uint32_t from, int i0, int i1) { tma_store_4d(out, from, i0, i1, 0, 0); });
      tma_store_commit();
      tma_store_wait_read<1>();  // the other buffer is free
      const int next = row_tile + walk.step;
      if (adds && next < g.row_tiles) {
        load_old<Config>(old, smem.staging(group, buffer ^ 1), smem.old(group, buffer ^ 1), first_row(next),
                         first_column, g);
      }
    }
    if constexpr (kBehind) {
#pragma unroll
      for (int i = 0; i < Config::kBN / 4; ++i) sums.add(i / 2, stored[i]);
    }
  }
  if constexpr (Config::kCounts) {
    const int item = blockIdx.x / g.splits;
    sums.template write<Config::kGroups * 4>(smem.a(0), fused.partials, walk.column_tile,
                                             item / g.column_tiles * g.splits + walk.rank);
  }
  if (leader) tma_store_wait_read<0>();  // shared memory must outlive the stores that read it
}

template <class Config, bool kDgrad, bool kFused>
__global__ __launch_bounds__(Config::kThreads, Config::kBlocks) void conv2d_pointwise_kernel(
    const __grid_constant__ CUtensorMap src,     // fwd: x [N*H*W,c_stride]; dgrad: dy [N*H*W,K]
    const __grid_constant__ CUtensorMap filter,  // w [K,C]
    const __grid_constant__ CUtensorMap out,  // fwd: y [N*H*W,K]; dgrad: dx [N*H*W,C]; linear: in lines of 64
    const float* __restrict__ bias,           // [K] or null (fwd)
    const __grid_constant__ StagedEpilogue<kFused> fused, const __grid_constant__ PointwiseShape g) {
  let_next_start();
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const PointwiseSmem<Config> smem = {
      (start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment, g};
  if (threadIdx.x == 0) {
    for (int i = 0; i < g.stages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kGroups * 4);
    }
    for (int i = 0; i < 2 * Config::kGroups; ++i) mbarrier_init(smem.old(i / 2, i % 2), 1);
    fence_barrier_init();
  } else if (threadIdx.x == 32) {
    for (const CUtensorMap* map : {&src, &filter, &out}) tma_prefetch_map(map);
  }
  __syncthreads();  // barriers are initialised
  wait_for_last();  // nothing but this kernel's parameters has been read
  if (threadIdx.x / 32 == Config::kGroups * 4) {
    if (threadIdx.x % 32 == 0) pointwise_produce<Config, kDgrad>(&src, &filter, smem, g);
    __syncwarp();
    if (g.splits > 1) {  // the exchange takes all threads of both blocks
      cluster_sync();
      cluster_sync();
    }
  } else {
    pointwise_consume<Config, kDgrad, kFused>(&out, smem, bias, fused, g);
  }
}

}  // namespace kiln
