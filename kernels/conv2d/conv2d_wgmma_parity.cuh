// Strided dgrad as gathered products without zeros (sm_90a). The pixels of dx fall into sh x sw classes by
// (h mod sh, w mod sw); those of a class meet the same taps, every sh-th and sw-th, at unit stride in dy:
//
//   h = a*sh + first_h, r = first_r + i*sh, p = a + origin_h + taps_h - 1 - i      (w, s, q alike)
//   dx[n, h, w, c] (+)= sum_{i,j,k} dy[n, p, q, k] * w[k, r, s, c]
//
// Row m of a class is its pixel (n, a, b), b fastest. Each class has its own im2col map of dy, since their
// extents and corners may differ by one. Copies, products, ring and warps are those of conv2d_wgmma.cuh; the
// epilogue scatters a class's rows to their pixels, whole 16-byte chunks of channels. One launch does all
// classes, in one of two orders: a block takes a row tile of every class in turn ("joined": the four uses of
// dy follow each other, in L2), or tiles of all classes are dealt to the blocks, the longest first, there and
// back ("split": the work evens out where there are few tiles). A class without taps is zero, or untouched
// under +=. Deterministic: one thread sums an output, in a fixed order.
#pragma once

#include "kernels/common/fast_divisor.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"

namespace kiln {

constexpr int kMaxParityClasses = 16;

struct ParityClass {
  int rows;                // pixels, N * extent_h * extent_w
  int extent_h, extent_w;  // pixels of an image: a, b
  int first_h, first_w;    // dx position of pixel (0, 0)
  int origin_h, origin_w;  // dy position of pixel (0, 0) under displacement (0, 0)
  int taps_h, taps_w;      // taps of each axis
  int first_r, first_s;    // the first of them; the others follow at the stride
  int row_tiles, steps;    // stages a tile: taps x channel slices, 0 without taps
  FastDivisor by_h, by_w;  // by the extents
};

struct ParityShape {
  ParityClass classes[kMaxParityClasses];  // most taps first
  int count;                               // classes that are computed
  int src_c, columns;                      // channels of dy and of dx
  int s;                                   // filter width
  int stride_h, stride_w;
  int out_h, out_w;  // dx
  int column_tiles, items;
  bool joined;      // an item is a row tile of every class, else of one
  bool accumulate;  // dx +=
};

struct ParityMaps {
  CUtensorMap src[kMaxParityClasses];  // in the order of the classes
};

// The tiles of a block: (class, row tile, column tile), columns fastest. Blocks take items forwards and
// backwards by turns, so that who got the longest of one round gets the shortest of the next.
template <class Config>
struct ParityWalk {
  const ParityShape& g;
  int round = 0, cls = 0, item, base = 0;  // base: items of the classes before (split)
  __device__ __forceinline__ explicit ParityWalk(const ParityShape& shape) : g(shape), item(blockIdx.x) {
    settle();
  }
  __device__ __forceinline__ bool done() const { return item >= g.items; }
  __device__ __forceinline__ const ParityClass& pixel_class() const { return g.classes[cls]; }
  __device__ __forceinline__ int first_row() const { return (item - base) / g.column_tiles * Config::kBM; }
  __device__ __forceinline__ int first_column() const { return (item - base) % g.column_tiles * Config::kBN; }
  __device__ __forceinline__ void next() {
    if (g.joined && ++cls < g.count) {
      settle();
    } else {
      next_item();
      settle();
    }
  }

 private:
  __device__ __forceinline__ void next_item() {
    ++round;
    item = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (g.joined) cls = 0;
  }
  // Goes on to a tile that exists: joined classes may have a row tile less than others.
  __device__ __forceinline__ void settle() {
    if (g.joined) {
      while (!done() && first_row() >= pixel_class().rows) {
        if (++cls == g.count) next_item();
      }
    } else {
      while (!done() && item - base >= pixel_class().row_tiles * g.column_tiles) {
        base += pixel_class().row_tiles * g.column_tiles;
        ++cls;
      }
    }
  }
};

// The producer thread: fills stages in the order in which the consumers use them.
template <class Config>
__device__ __forceinline__ void parity_produce(const ParityMaps& maps, const CUtensorMap* filter,
                                               WgmmaSmem<Config> smem, const ParityShape& g) {
  tma_prefetch_map(filter);
  for (int i = 0; i < g.count && g.classes[i].steps > 0; ++i) tma_prefetch_map(&maps.src[i]);
  RingPosition<Config::kStages> at;
  for (ParityWalk<Config> tile(g); !tile.done(); tile.next()) {
    const ParityClass& c = tile.pixel_class();
    const CUtensorMap* src = &maps.src[tile.cls];
    const int line = tile.first_row() / c.extent_w, image = line / c.extent_h;
    const int h = line % c.extent_h + c.origin_h, w = tile.first_row() % c.extent_w + c.origin_w;
    for (int i = 0; i < c.taps_h; ++i) {
      const int r = c.first_r + (c.taps_h - 1 - i) * g.stride_h;  // later taps meet earlier rows of dy
      for (int j = 0; j < c.taps_w; ++j) {
        const int s = c.first_s + (c.taps_w - 1 - j) * g.stride_w;
        for (int k = 0; k < g.src_c; k += Config::kBK) {
          mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
          mbarrier_arrive_expect(smem.full(at.stage), Config::kStageBytes);
          tma_load_im2col(smem.a(at.stage), src, smem.full(at.stage), k, w, h, image, j, i);
          load_filter_tile<Config, true>(filter, smem.b(at.stage), smem.full(at.stage), tile.first_column(),
                                         r * g.s + s, k);
          at.advance();
        }
      }
    }
  }
}

// Pixel of dx, counted over the batch, where row m of a class is; -1 beyond the last.
__device__ __forceinline__ int parity_pixel(const ParityShape& g, const ParityClass& c, int m) {
  const int line = c.by_w.divide(m), image = c.by_h.divide(line);
  const int h = (line - image * c.extent_h) * g.stride_h + c.first_h;
  const int w = (m - line * c.extent_w) * g.stride_w + c.first_w;
  return m < c.rows ? (image * g.out_h + h) * g.out_w + w : -1;
}

// The pixels of the rows whose chunks this thread moves, of the 16 rows from `first_row`.
template <class Config>
struct ParityRows {
  static constexpr int kChunks = Config::kColumnSpan / 8, kRowsAtOnce = 32 / kChunks;
  static constexpr int kRows = 16 / kRowsAtOnce;
  int pixel[kRows];
  __device__ __forceinline__ ParityRows(const ParityShape& g, const ParityClass& c, int first_row) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      pixel[i] = parity_pixel(g, c, first_row + i * kRowsAtOnce + threadIdx.x % 32 / kChunks);
    }
  }
  // The element of dx where this thread's chunk of row i and the span from `first_column` begins; -1 beyond
  // the edge.
  __device__ __forceinline__ ptrdiff_t chunk(const ParityShape& g, int i, int first_column) const {
    const int column = first_column + threadIdx.x % kChunks * 8;
    const int at = computed_again(pixel[i]);
    return at >= 0 && column < g.columns ? static_cast<ptrdiff_t>(at) * g.columns + column : -1;
  }
};

// The slices of a warp, as for_row_slices(), of a warpgroup's rows of the class from `first_row`.
template <class Config, class Visit>
__device__ __forceinline__ void for_parity_slices(int warp, const ParityClass& c, int first_row,
                                                  int first_column, const ParityShape& g,
                                                  const Visit& visit) {
  constexpr int kSpan = Config::kColumnSpan, kAcross = Config::kBN / kSpan;
#pragma unroll
  for (int m = 0; m < Config::kMTiles; ++m) {
    const ParityRows<Config> rows(g, c, first_row + m * 64 + warp % 4 * 16);
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      visit(m * kAcross + j, [&](int turn) { return rows.chunk(g, turn, first_column + j * kSpan); });
    }
  }
}

// Writes a warp's slices, with the old values where dx accumulates.
template <class Acc, class Held, class Slices>
__device__ __forceinline__ void parity_store(const Acc& acc, unsigned char* staging, Held& held,
                                             const bf16* old, bf16* dx, const Slices& slices) {
  if (old) {
    store_slices(acc, staging, held, old, dx, slices, AddFinish{});
  } else {
    store_slices(acc, staging, held, nullptr, dx, slices, SumFinish{});
  }
}

// Zeros to a warpgroup's rows of a class without taps.
template <class Config>
__device__ __forceinline__ void parity_store_zeros(int warp, const ParityClass& c, int first_row,
                                                   int first_column, bf16* __restrict__ dx,
                                                   const ParityShape& g) {
  for (int m = 0; m < Config::kMTiles; ++m) {
    const ParityRows<Config> rows(g, c, first_row + m * 64 + warp % 4 * 16);
    for (int span = 0; span < Config::kBN; span += Config::kColumnSpan) {
#pragma unroll
      for (int i = 0; i < ParityRows<Config>::kRows; ++i) {
        const ptrdiff_t at = rows.chunk(g, i, first_column + span);
        if (at >= 0) Vec<bf16, 8>{}.store(dx + at);
      }
    }
  }
}

// A consumer warpgroup: multiplies the stages of each tile and stores its rows.
template <class Config>
__device__ __forceinline__ void parity_consume(WgmmaSmem<Config> smem, unsigned char* store, bf16* dx,
                                               const ParityShape& g) {
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group_row = warp / 4 * Config::kMTiles * 64;           // first row of the warpgroup in the tile
  const auto release = [&](int stage) {                            // once a warp
    if (lane == 0) mbarrier_arrive(smem.empty(stage));
  };
  unsigned char* staging = store + warp * 16 * Config::kColumnSpan * 2;
  float acc[Config::kMTiles][Config::kBN / 2] = {};
  const bf16* old = g.accumulate ? dx : nullptr;
  RingPosition<Config::kStages> at;
  for (ParityWalk<Config> tile(g); !tile.done(); tile.next()) {
    const ParityClass& c = tile.pixel_class();
    const int row = tile.first_row() + group_row, column = tile.first_column();
    if (c.steps == 0) {
      parity_store_zeros<Config>(warp, c, row, column, dx, g);
      continue;
    }
    const auto slices = [&](const auto& visit) { for_parity_slices<Config>(warp, c, row, column, g, visit); };
    JoinedTile<Config, 2> held;
    int previous = 0;
    for (int step = 0; step < c.steps; ++step) {
      mbarrier_wait(smem.full(at.stage), at.parity);
#pragma unroll
      for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
      wgmma_fence();
      multiply_stage<Config, true>(acc, smem.a(at.stage) + group_row * Config::kBK * 2, smem.b(at.stage),
                                   step > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
      if (step > 0) release(previous);
      previous = at.stage;
      at.advance();
    }
    if (old) held.begin(old, slices);  // they come under the last products
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    release(previous);
    parity_store(acc, staging, held, old, dx, slices);
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_dgrad_wgmma_parity_kernel(
    const __grid_constant__ ParityMaps maps,     // dy [N,P,Q,K], one a class with taps; im2col
    const __grid_constant__ CUtensorMap filter,  // w [K,RS,C]
    bf16* __restrict__ dx,                       // [N,H,W,C]
    const __grid_constant__ ParityShape g) {
  static_assert(Config::kCluster == 1, "tiles of a class are one block's");
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const WgmmaSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  if (threadIdx.x / 128 == Config::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) parity_produce<Config>(maps, &filter, smem, g);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    parity_consume<Config>(smem, raw + (smem.store() - start), dx, g);
  }
}

}  // namespace kiln
