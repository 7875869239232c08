// batchnorm fwd_train: mean[c], rstd[c] over the M rows, running statistics, then
// y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] + beta[c]), act none, relu or relu6.
//
// batchnorm_tma_ring.cuh says what a block and a thread own and which stages stay on chip. (1) A thread sums
// squares about the mean of its 4 rows of a stage and merges (count, mean, M2); a warp's threads of a channel
// merge by shuffles, the warps through shared memory. (2) The chunks of a tile meet; every block merges them,
// all in the same order; the blocks of chunk 0 write the statistics. (3) y, from the last stage to the first.
// All moments are of x - x[0,c]. Merging sets of (count, mean, M2): the mean of means first, then M2 about
// it. Workspace, where the grid meets: mean and M2, [chunks,2,C] fp32. Needs 16-byte aligned tensors.
// Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_epilogue.cuh"
#include "kernels/batchnorm/batchnorm_moments.cuh"
#include "kernels/batchnorm/batchnorm_tma_ring_plan.cuh"

namespace kiln {
namespace {

constexpr const char* kName = "batchnorm_fwd_train_tma_ring_kernel";
constexpr int kRows = 4;  // of a thread in a stage

// What the statistics need, and where they go.
struct Statistics {
  float* running_mean;  // [C]
  float* running_var;   // [C]
  float* saved_mean;    // [C]
  float* saved_rstd;    // [C]
  float eps, momentum, unbiased;
};

// What one thread of the last merge needs of its channel: read before the statistics are known.
struct Parameters {
  float pivot, gamma, beta, running_mean, running_var;
};

// (1) Moments of x - pivot of this thread's rows, walking forwards.
template <class T, int V>
__device__ __forceinline__ Moments<V> thread_moments(const T* __restrict__ x, const RingTile& ring,
                                                     const RingSlice& s, RingShared& shared,
                                                     const unsigned char* slots, RingAt& at) {
  Moments<V> moments;
  moments.clear();
  float pivot[V];
  const auto first = Vec<T, V>::load(x + s.channel);
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = first[v];
  walk_forwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto* from = reinterpret_cast<const Vec<T, V>*>(slots + slot * kRingSlotBytes) + threadIdx.x;
    const int left = s.left(ring, stage);
    Vec<T, V> rows[kRows];
    if (left == kRows) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) rows[u] = from[u * kRingThreads];
      moments.template add_rows<kRows, true>(rows, kRows, pivot);
    } else {
#pragma unroll 1
      for (int u = 0; u < left; ++u) {
        rows[0] = from[u * kRingThreads];
        moments.template add_rows<1, true>(rows, 1, pivot);
      }
    }
  });
  return moments;
}

// Moments of channel `c` from `sets` rows of shared.first (means), shared.second (M2) and shared.count.
__device__ __forceinline__ Moments<1> fold(const RingShared& shared, int sets, int channels, int c) {
  Moments<1> all;
  all.clear();
  float sum = 0.0f;
#pragma unroll 4
  for (int k = 0; k < sets; ++k) {
    all.count += shared.count[k];
    sum += shared.count[k] * shared.first[k * channels + c];
  }
  if (all.count > 0.0f) all.mean[0] = sum / all.count;
#pragma unroll 4
  for (int k = 0; k < sets; ++k) {
    const float d = shared.first[k * channels + c] - all.mean[0];
    all.m2[0] += shared.second[k * channels + c] + shared.count[k] * d * d;
  }
  return all;
}

// The block's moments, of channel threadIdx.x of the tile in its threads below `channels`.
template <int V>
__device__ __forceinline__ Moments<1> block_moments(Moments<V>& moments, RingShared& shared, int lanes) {
  const int t = static_cast<int>(threadIdx.x), channels = lanes * V;
#pragma unroll 1
  for (int offset = 16; offset >= lanes; offset >>= 1) {
    const float more = __shfl_down_sync(0xffffffffu, moments.count, offset);
    float fraction = 0.0f, weight = 0.0f;
    if (more > 0.0f) moments.grow(more, fraction, weight);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      moments.merge(v, fraction, weight, __shfl_down_sync(0xffffffffu, moments.mean[v], offset),
                    __shfl_down_sync(0xffffffffu, moments.m2[v], offset));
    }
  }
  if (const int lane = t % 32, warp = t / 32; lane < lanes) {
    store_channels(moments.mean, shared.first + warp * channels + lane * V);
    store_channels(moments.m2, shared.second + warp * channels + lane * V);
    // Counts differ by channel only where channels do not exist, and those are read by nobody.
    if (lane == 0) shared.count[warp] = moments.count;
  }
  ring_sync();
  Moments<1> all;
  all.clear();
  if (t < channels) all = fold(shared, kRingWarps, channels, t);
  return all;
}

// (2) Merges the chunks: a thread its own ones of four channels, then one thread a channel.
template <class T, class Meet>
__device__ __forceinline__ Moments<1> merge_chunks(const Meet& meet, const RingTile& ring, RingShared& shared,
                                                   int channels) {
  constexpr int kBits = kVec16<T> == 8 ? 1 : 0;  // quads of a vector: 2 or 1
  const int t = static_cast<int>(threadIdx.x), chunks = ring.rows.chunks, bits = ring.lane_bits + kBits;
  const int quad = t & ((1 << bits) - 1), row = t >> bits, rows = min(kRingThreads >> bits, chunks);
  Moments<4> moments;
  moments.clear();
  for (int begin = row; row < rows && begin < chunks; begin += Meet::kBatch * rows) {
    float4 mean[Meet::kBatch], m2[Meet::kBatch];
#pragma unroll
    for (int u = 0; u < Meet::kBatch; ++u) {
      if (begin + u * rows < chunks) meet.load(begin + u * rows, 4 * quad, mean[u], m2[u]);
    }
#pragma unroll
    for (int u = 0; u < Meet::kBatch; ++u) {
      const int chunk = begin + u * rows;
      if (chunk >= chunks) break;
      const int count = ring.rows_of(chunk);
      if (count == 0) continue;
      float fraction, weight;
      moments.grow(static_cast<float>(count), fraction, weight);
      moments.merge(0, fraction, weight, mean[u].x, m2[u].x);
      moments.merge(1, fraction, weight, mean[u].y, m2[u].y);
      moments.merge(2, fraction, weight, mean[u].z, m2[u].z);
      moments.merge(3, fraction, weight, mean[u].w, m2[u].w);
    }
  }
  if (row < rows) {
    store_channels(moments.mean, shared.first + row * channels + 4 * quad);
    store_channels(moments.m2, shared.second + row * channels + 4 * quad);
    if (quad == 0) shared.count[row] = moments.count;
  }
  ring_sync();
  Moments<1> all;
  all.clear();
  if (t < channels) all = fold(shared, rows, channels, t);
  return all;
}

// Leaves mean, scale and beta of the block's channels in shared.result; chunk 0 writes the statistics.
__device__ __forceinline__ void finish_channel(const Moments<1>& all, const Parameters& p,
                                               const Statistics& statistics, const RingSlice& s, int rows,
                                               int c, RingShared& shared) {
  const float mean = p.pivot + all.mean[0];
  const float var = all.m2[0] / static_cast<float>(rows);
  const float rstd = batchnorm_rstd(var, statistics.eps);
  shared.result[0][c] = mean;
  shared.result[1][c] = batchnorm_scale(p.gamma, rstd);
  shared.result[2][c] = p.beta;
  if (s.chunk == 0) {
    const int to = s.tile_channel + c;
    const float momentum = statistics.momentum;
    statistics.saved_mean[to] = mean;
    statistics.saved_rstd[to] = rstd;
    statistics.running_mean[to] = (1.0f - momentum) * p.running_mean + momentum * mean;
    statistics.running_var[to] = (1.0f - momentum) * p.running_var + momentum * (var * statistics.unbiased);
  }
}

// (3) y, walking backwards.
template <class T, int V>
__device__ __forceinline__ void write_y(T* __restrict__ y, const RingTile& ring, const RingSlice& s,
                                        RingShared& shared, const unsigned char* slots, RingAt at,
                                        const BatchnormClamp& clamp) {
  Channels<V> ch;
  const int c = (static_cast<int>(threadIdx.x) & (ring.rows.lanes - 1)) * V;
  load_channels(shared.result[0] + c, ch.mean);
  load_channels(shared.result[1] + c, ch.scale);
  load_channels(shared.result[2] + c, ch.beta);
  const uint64_t once = l2_policy<0>(), usual = l2_policy<1>();
  const size_t step = static_cast<size_t>(ring.rows.block_rows) * ring.rows.channels;
  walk_backwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto* from = reinterpret_cast<const Vec<T, V>*>(slots + slot * kRingSlotBytes) + threadIdx.x;
    const int left = s.left(ring, stage);
    T* to =
        y + static_cast<size_t>(s.begin + stage * ring.stage_rows + s.row) * ring.rows.channels + s.channel;
    // As long as L2 has stages that are still to be fetched, y leaves it first.
    const uint64_t policy = s.stages > ring.slots && stage >= s.stages - ring.l2_stages ? once : usual;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        Vec<T, V> row = from[u * kRingThreads];
        float values[V];
#pragma unroll
        for (int v = 0; v < V; ++v) values[v] = ch.pre(v, batchnorm_centre(row[v], ch.mean[v]));
        set_clamped(row, values, clamp);
        store_hinted(row, to + u * step, policy);
      }
    }
  });
}

template <class Meet, class T, int V>
__global__ __launch_bounds__(kRingBlock, 1) void batchnorm_fwd_train_tma_ring_kernel(
    const __grid_constant__ CUtensorMap x_map, const T* __restrict__ x,  // [M,C], the pivot's row
    const float* __restrict__ gamma,                                     // [C]
    const float* __restrict__ beta,                                      // [C]
    T* __restrict__ y,                                                   // [M,C]
    float* partial,                                                      // [chunks,2,C], null in clusters
    const __grid_constant__ Statistics statistics, const __grid_constant__ RingTile ring,
    const __grid_constant__ BatchnormClamp clamp) {
  extern __shared__ __align__(128) unsigned char batchnorm_ring_smem[];
  RingShared& shared = *reinterpret_cast<RingShared*>(batchnorm_ring_smem);
  unsigned char* slots = batchnorm_ring_smem + kRingSharedBytes;
  if (threadIdx.x == kRingThreads) tma_prefetch_map(&x_map);
  const RingSlice s = RingSlice::of<V>(ring);
  const Meet meet = make_meet<Meet>(shared, partial, ring, s);
  ring_init(shared, ring.slots);
  if (threadIdx.x >= kRingThreads) {  // the loading warp
    RingLoader<1> loader = {{&x_map}, shared, ring, s, smem_address(slots), {}};
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
  const bool finishes = t < channels && s.tile_channel + t < ring.rows.channels;
  Parameters parameters = {};
  if (finishes) {
    const int c = s.tile_channel + t;
    parameters = {to_float(x[c]), gamma[c], beta[c], statistics.running_mean[c], statistics.running_var[c]};
  }
  RingAt at;
  Moments<V> moments = thread_moments<T, V>(x, ring, s, shared, slots, at);
  const Moments<1> block = block_moments(moments, shared, ring.rows.lanes);
  if (t < channels) meet.put(t, block.mean[0], block.m2[0]);
  meet.meet();
  const Moments<1> all = merge_chunks<T>(meet, ring, shared, channels);
  meet.leave();
  if (finishes) finish_channel(all, parameters, statistics, s, ring.rows.rows, t, shared);
  ring_sync();
  write_y<T, V>(y, ring, s, shared, slots, at, clamp);
  meet.done();
}

Support supports(const BatchnormProblem& p, const Device& device) {
  if (p.residual) return Support::no("there must be no residual");
  return ring_supports(p, device);
}

template <class T, int V>
Plan<BatchnormFwdTrain::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  const auto launch = make_ring_launch(p, device, 1, batchnorm_fwd_train_tma_ring_kernel<MeetInCluster, T, V>,
                                       batchnorm_fwd_train_tma_ring_kernel<MeetInGrid, T, V>, kName, config);
  const BatchnormTile& tile = launch.ring.rows;
  const size_t bytes =
      launch.cluster ? 0 : 2 * sizeof(float) * static_cast<size_t>(tile.chunks) * tile.channels;
  using Args = BatchnormFwdTrain::Args;
  return Plan<Args>(bytes, [=](const Args& a, void* workspace) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap x_map = make_ring_map(p, launch.ring, a.x);
    const Statistics statistics = {.running_mean = static_cast<float*>(a.running_mean),
                                   .running_var = static_cast<float*>(a.running_var),
                                   .saved_mean = static_cast<float*>(a.saved_mean),
                                   .saved_rstd = static_cast<float*>(a.saved_rstd),
                                   .eps = p.eps,
                                   .momentum = p.momentum,
                                   .unbiased = static_cast<float>(batchnorm_unbiased(p.per_channel()))};
    return Bound([=](Stream stream) {
      launch(stream, x_map, static_cast<const T*>(a.x), static_cast<const float*>(a.gamma),
             static_cast<const float*>(a.beta), static_cast<T*>(a.y), static_cast<float*>(workspace),
             statistics, launch.ring, batchnorm_clamp(p.act));
    });
  });
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_tma_ring = {
    .name = "tma_ring",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          return p.dtype == DType::kBF16 ? plan<bf16, kVec16<bf16>>(p, device, config)
                                         : plan<float, kVec16<float>>(p, device, config);
        },
    .configs = [](const BatchnormProblem& p, const Device& device) { return ring_configs(p, device, 1); },
    .preferred =
        [](const BatchnormProblem& p, const Device& device) {
          // More than shared memory and a few MiB: on_chip, which leaves more of it in L2, is faster.
          constexpr double kMostBytes = 40 << 20;
          const double bytes = 1.0 * p.per_channel() * p.c * static_cast<double>(size_of(p.dtype));
          return ring_preferred(p, device, 1) && bytes <= kMostBytes;
        }};

}  // namespace kiln
