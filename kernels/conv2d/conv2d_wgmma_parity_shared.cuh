// The 3x3, stride 2, padding 1 dgrad of an even map whose four classes share the copies of dy (sm_90a).
//
// Where H and W are even the classes of conv2d_wgmma_parity.cuh have the same extents, and all their taps
// meet dy[a + i, b + j] with i, j in {0, 1}: displacement (0, 0) serves four classes, (0, 1) those of odd
// columns, (1, 0) those of odd rows, (1, 1) one. A tile is kBM pixel groups (n, a, b), that is 4 * kBM pixels
// of dx, all channels; for each displacement and slice of 64 channels of dy TMA gathers one A tile, and each
// of its classes is a product with one 64 x 64 box of the filter. The filter, nine boxes a slice, is loaded
// once a block and stays. Two consumer warpgroups own 64 groups each, a ring of kStages A tiles lies before
// them. Preconditions: at most kSlices slices and 64 input channels. Deterministic.
#pragma once

#include "kernels/conv2d/conv2d_wgmma_parity.cuh"

namespace kiln {

struct ParitySharedConfig {
  static constexpr int kBM = 128, kBN = 256, kBK = 64, kStages = 4, kSlices = 2, kCluster = 1;
  static constexpr int kClasses = 4, kTaps = 9;
  static constexpr int kColumnSpan = 64;
  static constexpr int kConsumers = 2, kConsumerWarps = kConsumers * 4;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kABytes = kBM * kBK * 2, kBoxBytes = kBK * kColumnSpan * 2;
  static constexpr int kFilterBytes = kSlices * kTaps * kBoxBytes;
  static constexpr int kStoreBytes = kConsumerWarps * 16 * kColumnSpan * 2;
  static constexpr int kBarrierBytes = (2 * kStages + 1) * 8;
  static constexpr int kAlignment = 1024;  // period of the 128-byte swizzle
  static constexpr int kSmemBytes =
      kStages * kABytes + kFilterBytes + kStoreBytes + kBarrierBytes + kAlignment;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kSmemBytes <= 227 * 1024, "shared memory of one block");
};

// The boxes of a slice in the order of their displacement 2*i + j, and the class of each, in the order of
// parity_classes(): pixels (odd, odd), (even, odd), (odd, even), (even, even).
__host__ __device__ constexpr int shared_first_box(int displacement) {
  return displacement == 0 ? 0 : 2 + 2 * displacement;
}
__host__ __device__ constexpr int shared_boxes(int displacement) {
  return displacement == 0 ? 4 : displacement == 3 ? 1 : 2;
}
__host__ __device__ constexpr int shared_class(int box) {
  return box < 4 ? box : box == 5 ? 1 : box == 7 ? 2 : 0;
}

template <class Config>
struct ParitySharedSmem {
  uint32_t base;  // aligned to the swizzle's period
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Config::kABytes; }
  __device__ __forceinline__ uint32_t box(int slice, int box) const {
    return a(Config::kStages) + (slice * Config::kTaps + box) * Config::kBoxBytes;
  }
  __device__ __forceinline__ uint32_t store() const { return box(Config::kSlices, 0); }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return store() + Config::kStoreBytes + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
  __device__ __forceinline__ uint32_t filter_full() const { return empty(Config::kStages); }
};

// The producer thread: the filter once, then the A tiles in the order in which the consumers use them.
template <class Config>
__device__ __forceinline__ void shared_produce(const CUtensorMap* dy, const CUtensorMap* filter,
                                               ParitySharedSmem<Config> smem, const ParityShape& g) {
  tma_prefetch_map(dy);
  tma_prefetch_map(filter);
  const int slices = (g.src_c + Config::kBK - 1) / Config::kBK;
  mbarrier_arrive_expect(smem.filter_full(), slices * Config::kTaps * Config::kBoxBytes);
  for (int slice = 0; slice < slices; ++slice) {
    for (int d = 0; d < 4; ++d) {
      for (int box = shared_first_box(d); box < shared_first_box(d) + shared_boxes(d); ++box) {
        const ParityClass& c = g.classes[shared_class(box)];
        const int r = c.first_r + (c.taps_h - 1 - d / 2) * 2, s = c.first_s + (c.taps_w - 1 - d % 2) * 2;
        tma_load_3d(smem.box(slice, box), filter, smem.filter_full(), 0, r * g.s + s, slice * Config::kBK);
      }
    }
  }
  const ParityClass& c = g.classes[0];
  RingPosition<Config::kStages> at;
  for (int item = blockIdx.x; item < g.items; item += gridDim.x) {
    const int first = item * Config::kBM, line = first / c.extent_w, image = line / c.extent_h;
    const int h = line % c.extent_h, w = first % c.extent_w;
    for (int slice = 0; slice < slices; ++slice) {
      for (int d = 0; d < 4; ++d) {
        mbarrier_wait(smem.empty(at.stage), at.parity ^ 1);
        mbarrier_arrive_expect(smem.full(at.stage), Config::kABytes);
        tma_load_im2col(smem.a(at.stage), dy, smem.full(at.stage), slice * Config::kBK, w, h, image, d % 2,
                        d / 2);
        at.advance();
      }
    }
  }
}

// Starts the products of one A tile, of displacement kD, with its boxes of the filter.
template <class Config, int kD>
__device__ __forceinline__ void shared_multiply(float (&acc)[Config::kClasses][Config::kColumnSpan / 2],
                                                uint32_t a_tile, uint32_t boxes, int add) {
  const uint64_t a = k_major_descriptor<Config::kBK>(a_tile);
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
#pragma unroll
    for (int i = 0; i < shared_boxes(kD); ++i) {
      const int box = shared_first_box(kD) + i;
      const uint64_t b =
          mn_major_descriptor<Config::kColumnSpan>(boxes + box * Config::kBoxBytes, Config::kBoxBytes);
      Wgmma<Config::kColumnSpan, 0, 1>::multiply(acc[shared_class(box)], advance_descriptor(a, k16 * 32),
                                                 advance_descriptor(b, k16 * 16 * Config::kColumnSpan * 2),
                                                 kD > 0 || k16 > 0 ? 1 : add);
    }
  }
}

// A consumer warpgroup: multiplies the A tiles of each tile and stores its pixels.
template <class Config>
__device__ __forceinline__ void shared_consume(ParitySharedSmem<Config> smem, unsigned char* store, bf16* dx,
                                               const ParityShape& g) {
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform: descriptors need it
  const int group_row = warp / 4 * 64, slices = (g.src_c + Config::kBK - 1) / Config::kBK;
  float acc[Config::kClasses][Config::kColumnSpan / 2] = {};
  const auto pin = [&] {
#pragma unroll
    for (int i = 0; i < Config::kClasses; ++i) pin_registers(acc[i]);
  };
  unsigned char* staging = store + warp * 16 * Config::kColumnSpan * 2;
  const bf16* old = g.accumulate ? dx : nullptr;
  using Held = JoinedSlices<Config::kColumnSpan, Config::kClasses, 2>;
  int item = blockIdx.x;
  const auto slices_of_item = [&](const auto& visit) {  // one a class
#pragma unroll
    for (int i = 0; i < Config::kClasses; ++i) {
      const ParityRows<Config> rows(g, g.classes[i], item * Config::kBM + group_row + warp % 4 * 16);
      visit(i, [&](int turn) { return rows.chunk(g, turn, 0); });
    }
  };
  RingPosition<Config::kStages> at;
  int previous = 0;
  const auto stage = [&]<int kD>(int slice) {
    mbarrier_wait(smem.full(at.stage), at.parity);
    pin();
    wgmma_fence();
    shared_multiply<Config, kD>(acc, smem.a(at.stage) + group_row * Config::kBK * 2, smem.box(slice, 0),
                                slice > 0);
    wgmma_commit();
    wgmma_wait<1>();  // the products of the A tile before are done: its stage may be filled again
    if (lane == 0 && slice + kD > 0) mbarrier_arrive(smem.empty(previous));
    previous = at.stage;
    at.advance();
  };
  mbarrier_wait(smem.filter_full(), 0);
  for (; item < g.items; item += gridDim.x) {
    Held held;
    for (int slice = 0; slice < slices; ++slice) {
      stage.template operator()<0>(slice);
      stage.template operator()<1>(slice);
      stage.template operator()<2>(slice);
      stage.template operator()<3>(slice);
    }
    if (old) held.begin(old, slices_of_item);  // they come under the last products
    wgmma_wait<0>();
    pin();
    if (lane == 0) mbarrier_arrive(smem.empty(previous));
    parity_store(acc, staging, held, old, dx, slices_of_item);
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void conv2d_dgrad_wgmma_parity_shared_kernel(
    const __grid_constant__ CUtensorMap dy,      // [N,P,Q,K], im2col
    const __grid_constant__ CUtensorMap filter,  // w [K,9,C]
    bf16* __restrict__ dx,                       // [N,H,W,C]
    const __grid_constant__ ParityShape g) {
  extern __shared__ unsigned char raw[];
  const uint32_t start = smem_address(raw);
  const ParitySharedSmem<Config> smem = {(start + Config::kAlignment - 1) / Config::kAlignment *
                                         Config::kAlignment};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      mbarrier_init(smem.full(i), 1);
      mbarrier_init(smem.empty(i), Config::kConsumerWarps);
    }
    mbarrier_init(smem.filter_full(), 1);
    fence_barrier_init();
  }
  __syncthreads();  // barriers are initialised
  if (threadIdx.x / 128 == Config::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Config::kProducerRegisters));
    if (threadIdx.x % 128 == 0) shared_produce<Config>(&dy, &filter, smem, g);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Config::kConsumerRegisters));
    shared_consume<Config>(smem, raw + (smem.store() - start), dx, g);
  }
}

}  // namespace kiln
