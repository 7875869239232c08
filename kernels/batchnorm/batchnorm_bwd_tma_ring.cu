// batchnorm bwd: with g[m,c] = dy[m,c] where the activation passed (by its clamp, or by the mask's bit, then
// dresidual = g), else 0, dbeta[c] = sum_m g,
// dgamma[c] = rstd[c] * sum_m g * d, d = x[m,c] - mean[c], and
// dx[m,c] = gamma[c] * rstd[c] * (g - dbeta[c]/M - d * rstd[c] * dgamma[c]/M).
//
// batchnorm_tma_ring.cuh says what a block and a thread own and which stages stay on chip; a slot holds 8 KiB
// of x and 8 KiB of dy. (1) A thread sums g and g * d of its rows; a warp's threads of a channel add up by
// shuffles where the lanes are a power of two, the rest through shared memory; the mask's bits are loaded a
// stage ahead. (2) The chunks of a tile meet; every block adds them, all in the same order; the blocks of
// chunk 0 write dgamma and dbeta. (3) dx, from the last stage to the first. No workspace: the plan owns where
// chunks meet. Needs compute capability 9.0, C a multiple of 16 bytes (with a mask also of 8), 16-byte
// aligned tensors. Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_bwd_pairs.cuh"
#include "kernels/batchnorm/batchnorm_gate.cuh"
#include "kernels/batchnorm/batchnorm_tma_ring_plan.cuh"

namespace kiln {
namespace {

constexpr const char* kName = "batchnorm_bwd_tma_ring_kernel";
constexpr int kRows = 2;  // of a thread in a stage
constexpr int kPart = kRingSlotBytes / 2;

// A stage's rows in shared memory, from this thread's first.
template <class T, int V>
struct StageRows {
  const Vec<T, V>*x, *dy;
  __device__ __forceinline__ static StageRows of(const unsigned char* slots, int slot) {
    const auto* first = reinterpret_cast<const Vec<T, V>*>(slots + slot * kRingSlotBytes) + threadIdx.x;
    return {first, first + kPart / 16};
  }
};

// A thread's way through the mask: the bits of its rows of a stage.
template <class Gate, int V>
struct StageBits {
  const unsigned char* __restrict__ mask;  // [M,C/8]
  const RingTile& ring;
  const RingSlice& s;
  __device__ __forceinline__ void load(int stage, unsigned (&bits)[kRows]) const {
    if constexpr (Gate::kMasked) {
      const int left = stage < 0 ? 0 : s.left<kRows>(ring, stage), row_bytes = ring.rows.channels / 8;
      const unsigned char* from = mask + s.first_row(ring, stage) * row_bytes + s.channel / 8;
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        // With 8 channels a thread, each has a byte of its own.
        if (u < left) bits[u] = from[u * ring.rows.block_rows * row_bytes] >> (V == 8 ? 0 : s.channel % 8);
      }
    }
  }
};

// (1) The sums of this thread's rows, walking forwards.
template <class Gate, class T, int V>
__device__ __forceinline__ Sums<V> thread_sums(const StageBits<Gate, V>& mask, const Channels<V>& ch,
                                               const BatchnormActivation& activation, const RingTile& ring,
                                               const RingSlice& s, RingShared& shared,
                                               const unsigned char* slots, RingAt& at) {
  Sums<V> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) sums.g[v] = sums.gd[v] = 0.0f;
  unsigned next[kRows] = {};
  mask.load(0, next);
  walk_forwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto from = StageRows<T, V>::of(slots, slot);
    const int left = s.left<kRows>(ring, stage);
    unsigned bits[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) bits[u] = next[u];
    mask.load(stage + 1, next);
    Vec<T, V> x_rows[kRows], dy_rows[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        x_rows[u] = from.x[u * ring.stride];
        dy_rows[u] = from.dy[u * ring.stride];
      }
    }
    sum_rows<Gate, kRows, false>(dy_rows, x_rows, bits, left, ch, activation, sums.g, sums.gd);
  });
  return sums;
}

// Sums of channel `c` over `sets` rows of shared.first and shared.second.
__device__ __forceinline__ Sums<1> fold(const RingShared& shared, int sets, int channels, int c) {
  Sums<1> all = {};
#pragma unroll 4
  for (int k = 0; k < sets; ++k) {
    all.g[0] += shared.first[k * channels + c];
    all.gd[0] += shared.second[k * channels + c];
  }
  return all;
}

// Puts the block's sums where the chunks meet.
template <int V>
__device__ __forceinline__ void put_block(Sums<V>& sums, const RingTile& ring, const RingSlice& s,
                                          RingShared& shared, const BatchnormMeeting& meeting) {
  const int t = static_cast<int>(threadIdx.x), lanes = ring.rows.lanes;
  if (ring.in_warps()) {
    const int channels = lanes * V;
#pragma unroll 1
    for (int offset = 16; offset >= lanes; offset >>= 1) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sums.g[v] += __shfl_down_sync(0xffffffffu, sums.g[v], offset);
        sums.gd[v] += __shfl_down_sync(0xffffffffu, sums.gd[v], offset);
      }
    }
    if (const int lane = t % 32, warp = t / 32; lane < lanes) {
      store_channels(sums.g, shared.first + warp * channels + lane * V);
      store_channels(sums.gd, shared.second + warp * channels + lane * V);
    }
    ring_sync();
    if (t < channels) {
      const Sums<1> all = fold(shared, kRingWarps, channels, t);
      if (s.tile_channel + t < ring.rows.channels) meeting.put(t, all.g, all.gd);
    }
    return;
  }
  const int channels = lanes * 4;  // of a round
#pragma unroll
  for (int round = 0; round < V / 4; ++round) {
    if (round > 0) ring_sync();
    if (s.row < ring.rows.block_rows) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        shared.first[4 * t + v] = sums.g[4 * round + v];
        shared.second[4 * t + v] = sums.gd[4 * round + v];
      }
    }
    ring_sync();
    if (t < channels) {
      const Sums<1> all = fold(shared, ring.rows.block_rows, channels, t);
      const int c = t / 4 * V + 4 * round + t % 4;
      if (s.tile_channel + c < ring.rows.channels) meeting.put(c, all.g, all.gd);
    }
  }
}

// (2) Adds the chunks: a thread its own ones of four channels, then one thread a channel.
__device__ __forceinline__ Sums<1> merge_chunks(const BatchnormMeeting& meeting, const RingTile& ring,
                                                const RingSlice& s, RingShared& shared, int channels) {
  const int t = static_cast<int>(threadIdx.x);
  const RingMerge own = RingMerge::of(ring, s, channels);
  Sums<4> sums = {};
  const auto add = [&](int, const float4& g, const float4& gd) { add_chunk(sums, g, gd); };
  if (own.owns) meeting.each_chunk<kRingBatch>(own.row, own.rows, 4 * own.quad, add);
  if (own.row < own.rows) {
    store_channels(sums.g, shared.first + own.row * channels + 4 * own.quad);
    store_channels(sums.gd, shared.second + own.row * channels + 4 * own.quad);
  }
  ring_sync();
  Sums<1> all = {};
  if (t < channels) all = fold(shared, own.rows, channels, t);
  return all;
}

// (3) dx and dresidual, walking backwards. shared.result: dbeta/M and rstd * dgamma/M.
template <class Gate, class T, int V>
__device__ __forceinline__ void write_dx(T* __restrict__ dx, T* __restrict__ dresidual,
                                         const StageBits<Gate, V>& mask, const Channels<V>& ch,
                                         const BatchnormActivation& activation, const RingTile& ring,
                                         const RingSlice& s, RingShared& shared, const unsigned char* slots,
                                         RingAt at) {
  float mean_g[V], slope[V];
  const int c = s.lane * V;
  load_channels(shared.result[0] + c, mean_g);
  load_channels(shared.result[1] + c, slope);
  const uint64_t once = l2_policy<0>(), usual = l2_policy<1>();
  const size_t step = static_cast<size_t>(ring.rows.block_rows) * ring.rows.channels;
  unsigned next[kRows] = {};
  mask.load(s.stages - 1, next);
  walk_backwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto from = StageRows<T, V>::of(slots, slot);
    const int left = s.left<kRows>(ring, stage);
    unsigned bits[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) bits[u] = next[u];
    mask.load(stage - 1, next);
    const size_t first = s.first_row(ring, stage) * ring.rows.channels + s.channel;
    // As long as L2 has stages that are still to be fetched, dx leaves it first.
    const uint64_t policy = s.stages > ring.slots && stage >= s.stages - ring.l2_stages ? once : usual;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        Vec<T, V> row = from.x[u * ring.stride];
        Vec<T, V> dy = from.dy[u * ring.stride];
        float d[V], g[V];
#pragma unroll
        for (int v = 0; v < V; ++v) d[v] = batchnorm_centre(row[v], ch.mean[v]);
        gate<Gate>(dy, d, bits[u], ch, activation, g);
#pragma unroll
        for (int v = 0; v < V; ++v) row.set(v, ch.scale[v] * (g[v] - mean_g[v] - d[v] * slope[v]));
        store_hinted(row, dx + first + u * step, policy);
        if constexpr (Gate::kMasked) {
#pragma unroll
          for (int v = 0; v < V; ++v) dy.set(v, g[v]);
          store_hinted(dy, dresidual + first + u * step, policy);
        }
      }
    }
  });
}

template <class Gate, class T, int V>
__global__ __launch_bounds__(kRingBlock, 1) void batchnorm_bwd_tma_ring_kernel(
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap dy_map,
    const T* __restrict__ x,                 // [M,C]
    const T* __restrict__ dy,                // [M,C]
    const unsigned char* __restrict__ mask,  // [M,C/8], null without
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ saved_mean,    // [C]
    const float* __restrict__ saved_rstd,    // [C]
    T* __restrict__ dx,                      // [M,C]
    float* __restrict__ dgamma,              // [C]
    float* __restrict__ dbeta,               // [C]
    T* __restrict__ dresidual,               // [M,C], null without a mask
    unsigned* words,                         // [2,chunks,2,C]: sum g, sum g * d
    const __grid_constant__ RingTile ring, const __grid_constant__ BatchnormActivation activation) {
  extern __shared__ __align__(128) unsigned char batchnorm_ring_smem[];
  RingShared& shared = *reinterpret_cast<RingShared*>(batchnorm_ring_smem);
  unsigned char* slots = batchnorm_ring_smem + kRingSharedBytes;
  if (threadIdx.x == kRingThreads) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&dy_map);
  }
  const RingSlice s = RingSlice::of<V>(ring);
  ring_init(shared, ring.slots);
  if (threadIdx.x >= kRingThreads) {  // the loading warp
    RingLoader<2> loader = {{&x_map, &dy_map}, {x, dy}, shared, ring, s, smem_address(slots), {}};
    if (threadIdx.x == kRingThreads) {
      loader.walk_forwards();
      loader.walk_backwards();
    }
    return;
  }
  const int t = static_cast<int>(threadIdx.x), channels = ring.rows.lanes * V;
  BatchnormMeeting::bring(words, ring.rows, s.chunk, s.tile_channel, channels);
  const auto meeting = BatchnormMeeting::of(words, ring.rows, s.chunk, s.tile_channel);
  const int c = s.tile_channel + t;
  const bool finishes = t < channels && c < ring.rows.channels;
  const float rstd = finishes ? saved_rstd[c] : 0.0f;
  Channels<V> ch;
  ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
  RingAt at;
  const StageBits<Gate, V> bits = {mask, ring, s};
  Sums<V> sums = thread_sums<Gate, T, V>(bits, ch, activation, ring, s, shared, slots, at);
  put_block(sums, ring, s, shared, meeting);
  ring_sync();  // the merge uses the same shared memory
  const Sums<1> all = merge_chunks(meeting, ring, s, shared, channels);
  if (finishes) {
    const float inverse = 1.0f / static_cast<float>(ring.rows.rows), scale = all.gd[0] * rstd;
    shared.result[0][t] = all.g[0] * inverse;
    shared.result[1][t] = scale * (rstd * inverse);
    if (s.chunk == 0) {
      dbeta[c] = all.g[0];
      dgamma[c] = scale;
    }
  }
  ring_sync();
  write_dx<Gate, T, V>(dx, dresidual, bits, ch, activation, ring, s, shared, slots, at);
}

Support supports(const BatchnormProblem& p, const Device& device) {
  if (p.masked() && p.c % 8) return Support::no("with a mask, channels must be a multiple of 8");
  return ring_supports(p, device);
}

template <class Gate, class T, int V>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  const auto launch =
      make_ring_launch(p, device, 2, batchnorm_bwd_tma_ring_kernel<Gate, T, V>, kName, config);
  using Args = BatchnormBwd::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap x_map = make_ring_map(p, launch.ring, a.x),
                      dy_map = make_ring_map(p, launch.ring, a.dy);
    return Bound([=](Stream stream) {
      const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
      launch(stream, x_map, dy_map, static_cast<const T*>(a.x), static_cast<const T*>(a.dy),
             static_cast<const unsigned char*>(a.mask), per_channel(a.gamma), per_channel(a.beta),
             per_channel(a.saved_mean), per_channel(a.saved_rstd), static_cast<T*>(a.dx),
             static_cast<float*>(a.dgamma), static_cast<float*>(a.dbeta), static_cast<T*>(a.dresidual),
             launch.words.data(), launch.ring, batchnorm_activation(p));
    });
  });
}

template <class T, int V>
Plan<BatchnormBwd::Args> plan_gate(const BatchnormProblem& p, const Device& device, std::string_view config) {
  return p.masked() ? plan<ByMask, T, V>(p, device, config) : plan<ByClamp, T, V>(p, device, config);
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_tma_ring = {
    .name = "tma_ring",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          return p.dtype == DType::kBF16 ? plan_gate<bf16, kVec16<bf16>>(p, device, config)
                                         : plan_gate<float, kVec16<float>>(p, device, config);
        },
    .configs = [](const BatchnormProblem& p, const Device& device) { return ring_configs(p, device, 2); },
    .preferred =
        [](const BatchnormProblem& p, const Device& device) {
          // Of far more than shared memory and L2 keep, little is read once, and two_pass reads faster.
          constexpr double kMostMib = 100;
          return batchnorm_mib(p) <= kMostMib && ring_preferred(p, device, 2);
        }};

}  // namespace kiln
