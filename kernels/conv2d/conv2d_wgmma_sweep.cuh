// The gathered product of conv2d_wgmma.cuh for stride 1, with every filter tap reading one copy of the
// source:
//
//   out[m, j] = addend + sum_{c,s,r} src[pixel(m) displaced by (r,s), c] * filter(j, r, s, c)
//
// Rows m sweep the padded maps: each image is src_h + pad map rows of src_w + pad pixels, padding on the left
// and on top only, since the zeros that follow a map row or an image are those that the next one begins with.
// Displacement (r, s) is then r * pitch + s pixels further on, the same for all m. A tile is kBM consecutive
// m and needs kBM + (R-1) * pitch + S-1 consecutive pixels: im2col mode walks just these, zeros included. In
// shared memory a pixel is a row of kBK channels; swizzling is a function of the address, so tap (r, s) is
// the same tile read from r * pitch + s rows further on. Rows m on padding are computed and not stored. A
// block keeps to one column tile; a filter that fits is loaded once and stays. kTeam warpgroups share a tile:
// 1, and one warpgroup's products run under the other's stores, or 2, and they share the filter's ring.
// Deterministic: one thread sums an output, in a fixed order.
#pragma once

#include "kernels/conv2d/conv2d_stats_store.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"
#include "kernels/conv2d/conv2d_wgmma_sweep_tile.cuh"

namespace kiln {

// Starts the copies of the pixels that tile rows from `first` need, channels from c0, displaced by s.
template <class Config>
__device__ __forceinline__ void sweep_load_source(const CUtensorMap* src, uint32_t to, uint32_t barrier,
                                                  int first, int c0, int s, const SweepShape& shape) {
  mbarrier_arrive_expect(barrier, shape.loads * shape.load_pixels * Config::kPixelBytes);
  for (int i = 0; i < shape.loads; ++i) {
    const int pixel = first + i * shape.load_pixels, in_image = pixel % shape.image_pixels;
    tma_load_im2col(to + i * shape.load_pixels * Config::kPixelBytes, src, barrier, c0,
                    in_image % shape.pitch + shape.g.origin_w, in_image / shape.pitch + shape.g.origin_h,
                    pixel / shape.image_pixels, s, 0);
  }
}

// The producer thread: fills both rings in the order in which the consumers use them.
template <class Config, bool kDgrad>
__device__ __forceinline__ void sweep_produce(const CUtensorMap* src, const CUtensorMap* filter,
                                              SweepSmem<Config> smem, const SweepShape& shape) {
  const WgmmaShape& g = shape.g;
  const int taps = g.r * g.s, copy_taps = taps / shape.copies;
  tma_prefetch_map(src);
  tma_prefetch_map(filter);
  SweepRing a = {shape.a_stages}, b = {shape.b_stages};
  bool load_filter = true;
  int team = 0;
  for (SweepWalk<Config> tile(g, 0, 1); !tile.done(); tile.next()) {
    for (int c0 = 0; c0 < g.src_c; c0 += Config::kBK) {
      for (int copy = 0; copy < shape.copies; ++copy) {
        mbarrier_wait(smem.a_empty(a.stage), a.parity ^ 1);
        sweep_load_source<Config>(src, smem.a(a.stage), smem.a_full(team, a.stage), tile.first_row(), c0,
                                  copy, shape);
        a.advance();
        for (int t = 0; t < copy_taps && load_filter; ++t) {
          const int tap = t % g.r * g.s + t / g.r + copy;
          mbarrier_wait(smem.b_empty(b.stage), b.parity ^ 1);
          mbarrier_arrive_expect(smem.b_full(b.stage), Config::kBStageBytes);
          // dgrad gathers dy with the filter turned by 180 degrees.
          load_filter_tile<Config, kDgrad>(filter, smem.b(b.stage), smem.b_full(b.stage), tile.column,
                                           kDgrad ? taps - 1 - tap : tap, c0);
          b.advance();
        }
      }
    }
    load_filter = !shape.resident;
    team = (team + 1) % Config::kTeams;
  }
}

// Starts the products of one filter tile as a group, kK16s times 16 channels. `add`: 0 where it is the tile's
// first.
template <class Config, bool kDgrad, int kK16s>
__device__ __forceinline__ void sweep_multiply_some(float (&acc)[Config::kMTiles][Config::kBN / 2],
                                                    uint32_t a_tile, uint32_t b_tile, int add) {
  constexpr int kSpan = Config::kColumnSpan;
  const uint64_t a = k_major_descriptor<Config::kBK>(a_tile);
  const uint64_t b = kDgrad ? mn_major_descriptor<kSpan>(b_tile, Config::kBK * kSpan * 2)
                            : k_major_descriptor<Config::kBK>(b_tile);
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
  wgmma_fence();
#pragma unroll
  for (int k16 = 0; k16 < kK16s; ++k16) {
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      Wgmma<Config::kBN, 0, kDgrad>::multiply(
          acc[i], advance_descriptor(a, i * 64 * Config::kPixelBytes + k16 * 32),
          advance_descriptor(b, k16 * (kDgrad ? 16 * kSpan * 2 : 32)), k16 > 0 ? 1 : add);
    }
  }
  wgmma_commit();  // here, not after the branches that lead here: else the compiler ends each by itself
}

// The same for `k16s` times 16 channels: those beyond the last are not multiplied.
template <class Config, bool kDgrad>
__device__ __forceinline__ void sweep_multiply(float (&acc)[Config::kMTiles][Config::kBN / 2],
                                               uint32_t a_tile, uint32_t b_tile, int k16s, int add) {
  if (k16s >= Config::kBK / 16) {
    sweep_multiply_some<Config, kDgrad, Config::kBK / 16>(acc, a_tile, b_tile, add);
  } else if (k16s == 1) {
    sweep_multiply_some<Config, kDgrad, 1>(acc, a_tile, b_tile, add);
  } else if constexpr (Config::kBK == 64) {
    if (k16s == 2) {
      sweep_multiply_some<Config, kDgrad, 2>(acc, a_tile, b_tile, add);
    } else {
      sweep_multiply_some<Config, kDgrad, 3>(acc, a_tile, b_tile, add);
    }
  }
}

// The output pixel of a row of the sweep, -1 where it lies on padding.
__device__ __forceinline__ int sweep_pixel(const SweepShape& shape, int row) {
  const WgmmaShape& g = shape.g;
  const int image = row / shape.image_pixels, in_image = row % shape.image_pixels;
  const int h = in_image / shape.pitch, w = in_image % shape.pitch;
  return row < g.rows && h < g.out_h && w < g.out_w ? (image * g.out_h + h) * g.out_w + w : -1;
}

// The slices of a warp, as for_row_slices(), of a warpgroup's rows of the sweep from `first_row`. Lane l
// finds the output pixel of row l % 16, -1 where the row lies on padding.
template <class Config, class Visit>
__device__ __forceinline__ void for_sweep_slices(int warp, int first_row, int first_column,
                                                 const SweepShape& shape, const Visit& visit) {
  constexpr int kSpan = Config::kColumnSpan, kAcross = Config::kBN / kSpan;
  constexpr int kChunks = kSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32, columns = shape.g.columns;
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
    const int pixel = sweep_pixel(shape, first_row + i * 64 + warp % 4 * 16 + lane % 16);
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      const int first = first_column + j * kSpan, chunk = first + lane % kChunks * 8;
      if (first >= columns) continue;
      visit(i * kAcross + j, [&](int turn) -> ptrdiff_t {  // all lanes call it together
        const int at = computed_again(__shfl_sync(0xffffffffu, pixel, turn * kRowsAtOnce + lane / kChunks));
        return at >= 0 && chunk < columns ? static_cast<ptrdiff_t>(at) * columns + chunk : -1;
      });
    }
  }
}

// Writes a warpgroup's accumulators with their statistics. Rows on padding are not zeros: they are not
// counted.
template <class Config>
__device__ __forceinline__ void sweep_store_counted(const float (&acc)[Config::kMTiles][Config::kBN / 2],
                                                    unsigned char* store, int warp, int first_row,
                                                    int first_column, bf16* __restrict__ out,
                                                    const SweepShape& shape, TileStats<Config>& stats) {
  constexpr bool kKept = TileStats<Config>::kKept;
  constexpr int kSpan = Config::kColumnSpan, kChunks = kSpan / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32, columns = shape.g.columns;
  int pixel[Config::kMTiles], counted = 0;
  unsigned pixels[Config::kMTiles];
#pragma unroll
  for (int i = 0; i < Config::kMTiles; ++i) {
    pixel[i] = sweep_pixel(shape, first_row + i * 64 + warp % 4 * 16 + lane % 16);
    pixels[i] = __ballot_sync(0xffffffffu, pixel[i] >= 0) & 0xffff;
    counted += __popc(pixels[i]);
  }
#pragma unroll
  for (int span = 0; span < Config::kBN; span += kSpan) {
    const int chunk = first_column + span + lane % kChunks * 8;
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) {
      const auto global = [&](int turn) -> bf16* {  // all lanes call it together
        const int at = __shfl_sync(0xffffffffu, pixel[i], turn * kRowsAtOnce + lane / kChunks);
        return at >= 0 && chunk < columns ? out + static_cast<size_t>(at) * columns + chunk : nullptr;
      };
      store_counted_slice<kSpan>(acc[i] + span / 2, store + warp * 16 * kSpan * 2, first_column + span,
                                 columns, shape.epilogue, pixels[i], stats, kKept ? span : 0, global);
    }
    if constexpr (!kKept) stats.fold(span, static_cast<float>(counted));
  }
  if constexpr (kKept) {
    stats.added(counted, 16 * Config::kMTiles);
  } else {
    stats.count += static_cast<float>(counted);
  }
}

// A consumer warpgroup: multiplies the stages of each of its tiles and stores its rows.
template <class Config, bool kDgrad, bool kFused>
__device__ __forceinline__ void sweep_consume(SweepSmem<Config> smem, unsigned char* store, const float* bias,
                                              bf16* out, const SweepShape& shape) {
  const WgmmaShape& g = shape.g;
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int team = warp / 4 / Config::kTeam, group_row = warp / 4 % Config::kTeam * Config::kMTiles * 64;
  const int copy_taps = g.r * g.s / shape.copies;
  const int slice_copies = shape.copies, copies = (g.src_c + Config::kBK - 1) / Config::kBK * slice_copies;
  float acc[Config::kMTiles][Config::kBN / 2] = {};
  SweepRing a = {shape.a_stages}, b = {shape.b_stages};
  a.advance(team * copies);
  bool wait_filter = true;
  TileStats<Config> stats;
  unsigned char* staging = store + warp * 16 * Config::kColumnSpan * 2;
  const bf16* joined = joined_tensor<kDgrad, kFused>(g, shape.epilogue, out);
  constexpr int kHeld = !kFused ? 2 : Config::kMTiles * Config::kBN > 128 ? 0 : 1;  // as registers allow
  static_assert(kHeld % (Config::kBN / Config::kColumnSpan) == 0,
                "of slices that take each other's registers both or neither lie beyond the last column");
  uint32_t phases = 0;  // bit i: parity of this team's next phase of source stage i
  for (SweepWalk<Config> tile(g, team, Config::kTeams); !tile.done(); tile.next()) {
    if (shape.resident) b.stage = 0, b.parity = 0;  // the one fill of each stage
    const auto slices = [&](const auto& visit) {
      for_sweep_slices<Config>(warp, tile.first_row() + group_row, tile.column, shape, visit);
    };
    JoinedTile<Config, kHeld> held;
    int last_a = 0, last_b = 0;
    for (int copy = 0; copy < copies; ++copy) {
      const int channels = g.src_c - copy / slice_copies * Config::kBK;  // of this slice and those after it
      const int k16s = channels >= Config::kBK ? Config::kBK / 16 : (channels + 15) / 16;
      mbarrier_wait(smem.a_full(team, a.stage), phases >> a.stage & 1);
      phases ^= 1u << a.stage;
      for (int t = 0, r = 0, shift = 0; t < copy_taps; ++t) {
        if (wait_filter) mbarrier_wait(smem.b_full(b.stage), b.parity);
        sweep_multiply<Config, kDgrad>(
            acc, smem.a(a.stage) + (group_row + r * shape.pitch + shift) * Config::kPixelBytes,
            smem.b(b.stage), k16s, copy + t > 0);
        wgmma_wait<1>();  // the products of the filter tile before are done: what they read may be filled
                          // again
        if (lane == 0 && copy + t > 0) {
          if (!shape.resident) mbarrier_arrive(smem.b_empty(last_b));
          if (t == 0) mbarrier_arrive(smem.a_empty(last_a));
        }
        last_b = b.stage;
        b.advance();
        if (++r == g.r) r = 0, ++shift;  // the next filter column
      }
      last_a = a.stage;
      a.advance();
    }
    if (joined) held.begin(joined, slices);  // they come under the last products
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Config::kMTiles; ++i) pin_registers(acc[i]);
    if (lane == 0) {
      if (!shape.resident) mbarrier_arrive(smem.b_empty(last_b));
      mbarrier_arrive(smem.a_empty(last_a));
    }
    a.advance((Config::kTeams - 1) * copies);  // the other warpgroup's tile
    wait_filter = !shape.resident;
    if (kFused && shape.epilogue.stats.mean) {
      sweep_store_counted<Config>(acc, store, warp, tile.first_row() + group_row, tile.column, out, shape,
                                  stats);
    } else {
      store_product<kDgrad, kFused>(acc, staging, held, joined, out, bias, tile.column, shape.epilogue, g,
                                    slices);
    }
  }
  if (kFused && shape.epilogue.stats.mean) {
    finish_stats<Config::kConsumerWarps>(stats, smem.store(), shape.epilogue.stats,
                                         blockIdx.x % g.column_tiles, blockIdx.x / g.column_tiles, g.columns);
  }
}

template <class Config, bool kDgrad, bool kFused>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_sweep_wgmma_kernel(
    const __grid_constant__ CUtensorMap src,     // fwd: x [N,H,W,c_stride]; dgrad: dy [N,P,Q,K]; im2col
    const __grid_constant__ CUtensorMap filter,  // w [K,RS,C]
    const float* __restrict__ bias,              // [K] or null (fwd)
    bf16* __restrict__ out,                      // fwd: y [N,P,Q,K]; dgrad: dx [N,H,W,C]
    const __grid_constant__ SweepShape shape) {
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const SweepSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment * Config::kAlignment,
                                  shape.a_stage_bytes, shape.b_stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < shape.a_stages; ++i) {
      for (int team = 0; team < Config::kTeams; ++team) mbarrier_init(smem.a_full(team, i), 1);
      mbarrier_init(smem.a_empty(i), Config::kTeam * 4);
    }
    for (int i = 0; i < shape.b_stages; ++i) {
      mbarrier_init(smem.b_full(i), 1);
      mbarrier_init(smem.b_empty(i), Config::kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  if (threadIdx.x / 128 == Config::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) sweep_produce<Config, kDgrad>(&src, &filter, smem, shape);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    sweep_consume<Config, kDgrad, kFused>(smem, raw + (smem.store() - start), bias, out, shape);
  }
}

}  // namespace kiln
