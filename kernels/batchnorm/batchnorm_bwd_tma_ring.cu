// batchnorm bwd: with g[m,c] = dy[m,c] where the activation passed, else 0, dbeta[c] = sum_m g,
// dgamma[c] = rstd[c] * sum_m g * d, d = x[m,c] - mean[c], and
// dx[m,c] = gamma[c] * rstd[c] * (g - dbeta[c]/M - d * rstd[c] * dgamma[c]/M).
//
// batchnorm_tma_ring.cuh says what a block and a thread own and which stages stay on chip; a slot holds 8 KiB
// of x and 8 KiB of dy. (1) A thread sums g and g * d of its rows; a warp's threads of a channel add up by
// shuffles, the warps through shared memory. (2) The chunks of a tile meet; every block adds them, all in the
// same order; the blocks of chunk 0 write dgamma and dbeta. (3) dx, from the last stage to the first.
// Workspace, where the grid meets: the sums, [chunks,2,C] fp32. Needs 16-byte aligned tensors. Deterministic.
// Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_gate.cuh"
#include "kernels/batchnorm/batchnorm_tma_ring_plan.cuh"

namespace kiln {
namespace {

constexpr const char* kName = "batchnorm_bwd_tma_ring_kernel";
constexpr int kRows = 2;  // of a thread in a stage
constexpr int kPart = kRingSlotBytes / 2;

// sum g and sum g * d of V channels.
template <int V>
struct Sums {
  float g[V], gd[V];
};

// A stage's rows in shared memory, from this thread's first.
template <class T, int V>
struct StageRows {
  const Vec<T, V>*x, *dy;
  __device__ __forceinline__ static StageRows of(const unsigned char* slots, int slot) {
    const auto* first = reinterpret_cast<const Vec<T, V>*>(slots + slot * kRingSlotBytes) + threadIdx.x;
    return {first, first + kPart / 16};
  }
};

// (1) The sums of this thread's rows, walking forwards.
template <class T, int V>
__device__ __forceinline__ Sums<V> thread_sums(const Channels<V>& ch, const BatchnormActivation& activation,
                                               const RingTile& ring, const RingSlice& s, RingShared& shared,
                                               const unsigned char* slots, RingAt& at) {
  Sums<V> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) sums.g[v] = sums.gd[v] = 0.0f;
  walk_forwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto from = StageRows<T, V>::of(slots, slot);
    const int left = s.left(ring, stage);
    const unsigned no_bits[kRows] = {};
    Vec<T, V> x_rows[kRows], dy_rows[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        x_rows[u] = from.x[u * kRingThreads];
        dy_rows[u] = from.dy[u * kRingThreads];
      }
    }
    sum_rows<ByClamp, kRows, false>(dy_rows, x_rows, no_bits, left, ch, activation, sums.g, sums.gd);
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

// The block's sums, of channel threadIdx.x of the tile in its threads below `channels`.
template <int V>
__device__ __forceinline__ Sums<1> block_sums(Sums<V>& sums, RingShared& shared, int lanes) {
  const int t = static_cast<int>(threadIdx.x), channels = lanes * V;
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
  Sums<1> all = {};
  if (t < channels) all = fold(shared, kRingWarps, channels, t);
  return all;
}

// (2) Adds the chunks: a thread its own ones of four channels, then one thread a channel.
template <class T, class Meet>
__device__ __forceinline__ Sums<1> merge_chunks(const Meet& meet, const RingTile& ring, RingShared& shared,
                                                int channels) {
  constexpr int kBits = kVec16<T> == 8 ? 1 : 0;  // quads of a vector: 2 or 1
  const int t = static_cast<int>(threadIdx.x), chunks = ring.rows.chunks, bits = ring.lane_bits + kBits;
  const int quad = t & ((1 << bits) - 1), row = t >> bits, rows = min(kRingThreads >> bits, chunks);
  Sums<4> sums = {};
  for (int begin = row; row < rows && begin < chunks; begin += Meet::kBatch * rows) {
    float4 g[Meet::kBatch], gd[Meet::kBatch];
#pragma unroll
    for (int u = 0; u < Meet::kBatch; ++u) {
      g[u] = gd[u] = {};
      if (begin + u * rows < chunks) meet.load(begin + u * rows, 4 * quad, g[u], gd[u]);
    }
#pragma unroll
    for (int u = 0; u < Meet::kBatch; ++u) {
      sums.g[0] += g[u].x;
      sums.g[1] += g[u].y;
      sums.g[2] += g[u].z;
      sums.g[3] += g[u].w;
      sums.gd[0] += gd[u].x;
      sums.gd[1] += gd[u].y;
      sums.gd[2] += gd[u].z;
      sums.gd[3] += gd[u].w;
    }
  }
  if (row < rows) {
    store_channels(sums.g, shared.first + row * channels + 4 * quad);
    store_channels(sums.gd, shared.second + row * channels + 4 * quad);
  }
  ring_sync();
  Sums<1> all = {};
  if (t < channels) all = fold(shared, rows, channels, t);
  return all;
}

// (3) dx, walking backwards. shared.result: dbeta/M and rstd * dgamma/M.
template <class T, int V>
__device__ __forceinline__ void write_dx(T* __restrict__ dx, const Channels<V>& ch,
                                         const BatchnormActivation& activation, const RingTile& ring,
                                         const RingSlice& s, RingShared& shared, const unsigned char* slots,
                                         RingAt at) {
  float mean_g[V], slope[V];
  const int c = (static_cast<int>(threadIdx.x) & (ring.rows.lanes - 1)) * V;
  load_channels(shared.result[0] + c, mean_g);
  load_channels(shared.result[1] + c, slope);
  const uint64_t once = l2_policy<0>(), usual = l2_policy<1>();
  const size_t step = static_cast<size_t>(ring.rows.block_rows) * ring.rows.channels;
  walk_backwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto from = StageRows<T, V>::of(slots, slot);
    const int left = s.left(ring, stage);
    T* to =
        dx + static_cast<size_t>(s.begin + stage * ring.stage_rows + s.row) * ring.rows.channels + s.channel;
    // As long as L2 has stages that are still to be fetched, dx leaves it first.
    const uint64_t policy = s.stages > ring.slots && stage >= s.stages - ring.l2_stages ? once : usual;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        Vec<T, V> row = from.x[u * kRingThreads];
        const Vec<T, V> dy = from.dy[u * kRingThreads];
        float d[V], g[V];
#pragma unroll
        for (int v = 0; v < V; ++v) d[v] = batchnorm_centre(row[v], ch.mean[v]);
        gate<ByClamp>(dy, d, 0, ch, activation, g);
#pragma unroll
        for (int v = 0; v < V; ++v) row.set(v, ch.scale[v] * (g[v] - mean_g[v] - d[v] * slope[v]));
        store_hinted(row, to + u * step, policy);
      }
    }
  });
}

template <class Meet, class T, int V>
__global__ __launch_bounds__(kRingBlock, 1) void batchnorm_bwd_tma_ring_kernel(
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap dy_map,
    const float* __restrict__ gamma,       // [C]
    const float* __restrict__ beta,        // [C]
    const float* __restrict__ saved_mean,  // [C]
    const float* __restrict__ saved_rstd,  // [C]
    T* __restrict__ dx,                    // [M,C]
    float* __restrict__ dgamma,            // [C]
    float* __restrict__ dbeta,             // [C]
    float* partial,                        // [chunks,2,C]: sum g, sum g * d; null in clusters
    const __grid_constant__ RingTile ring, const __grid_constant__ BatchnormActivation activation) {
  extern __shared__ __align__(128) unsigned char batchnorm_ring_smem[];
  RingShared& shared = *reinterpret_cast<RingShared*>(batchnorm_ring_smem);
  unsigned char* slots = batchnorm_ring_smem + kRingSharedBytes;
  if (threadIdx.x == kRingThreads) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&dy_map);
  }
  const RingSlice s = RingSlice::of<V>(ring);
  const Meet meet = make_meet<Meet>(shared, partial, ring, s);
  ring_init(shared, ring.slots);
  if (threadIdx.x >= kRingThreads) {  // the loading warp
    RingLoader<2> loader = {{&x_map, &dy_map}, shared, ring, s, smem_address(slots), {}};
    if (threadIdx.x == kRingThreads) loader.walk_forwards();
    __syncwarp();
    meet.meet();
    meet.leave();
    if (threadIdx.x == kRingThreads) loader.walk_backwards();
    __syncwarp();
    meet.done();
    return;
  }
  const int t = static_cast<int>(threadIdx.x), channels = ring.rows.lanes * V;
  const int c = s.tile_channel + t;
  const bool finishes = t < channels && c < ring.rows.channels;
  const float rstd = finishes ? saved_rstd[c] : 0.0f;
  Channels<V> ch;
  ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
  RingAt at;
  Sums<V> sums = thread_sums<T, V>(ch, activation, ring, s, shared, slots, at);
  const Sums<1> block = block_sums(sums, shared, ring.rows.lanes);
  if (t < channels) meet.put(t, block.g[0], block.gd[0]);
  meet.meet();
  const Sums<1> all = merge_chunks<T>(meet, ring, shared, channels);
  meet.leave();
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
  write_dx<T, V>(dx, ch, activation, ring, s, shared, slots, at);
  meet.done();
}

Support supports(const BatchnormProblem& p, const Device& device) {
  if (p.masked()) return Support::no("there must be no mask");
  return ring_supports(p, device);
}

template <class T, int V>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  const auto launch = make_ring_launch(p, device, 2, batchnorm_bwd_tma_ring_kernel<MeetInCluster, T, V>,
                                       batchnorm_bwd_tma_ring_kernel<MeetInGrid, T, V>, kName, config);
  const BatchnormTile& tile = launch.ring.rows;
  const size_t bytes =
      launch.cluster ? 0 : 2 * sizeof(float) * static_cast<size_t>(tile.chunks) * tile.channels;
  using Args = BatchnormBwd::Args;
  return Plan<Args>(bytes, [=](const Args& a, void* workspace) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap x_map = make_ring_map(p, launch.ring, a.x),
                      dy_map = make_ring_map(p, launch.ring, a.dy);
    return Bound([=](Stream stream) {
      const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
      launch(stream, x_map, dy_map, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
             per_channel(a.saved_rstd), static_cast<T*>(a.dx), static_cast<float*>(a.dgamma),
             static_cast<float*>(a.dbeta), static_cast<float*>(workspace), launch.ring,
             batchnorm_activation(p));
    });
  });
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_tma_ring = {
    .name = "tma_ring",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          return p.dtype == DType::kBF16 ? plan<bf16, kVec16<bf16>>(p, device, config)
                                         : plan<float, kVec16<float>>(p, device, config);
        },
    .configs = [](const BatchnormProblem& p, const Device& device) { return ring_configs(p, device, 2); },
    .preferred = [](const BatchnormProblem& p,
                    const Device& device) { return ring_preferred(p, device, 2); }};

}  // namespace kiln
