// batchnorm fwd_train: mean[c], rstd[c] over the M rows, running statistics, then
// y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] + beta[c]), act none, relu or relu6.
//
// batchnorm_tma_ring.cuh says what a block and a thread own and which stages stay on chip. (1) A thread sums
// squares about the mean of its 4 rows of a stage and merges (count, mean, M2); a warp's threads of a channel
// merge by shuffles where the lanes are a power of two, the rest through shared memory. (2) The chunks of a
// tile meet; every block merges them, all in the same order; the blocks of chunk 0 write the statistics. (3)
// y, from the last stage to the first. All moments are of x - x[0,c]. Merging sets of (count, mean, M2): the
// mean of means first, then M2 about it. No workspace: the plan owns where chunks meet. Needs compute
// capability 9.0, C a multiple of 16 bytes, 16-byte aligned tensors. Deterministic. Mirrors
// cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_epilogue.cuh"
#include "kernels/batchnorm/batchnorm_moments.cuh"
#include "kernels/batchnorm/batchnorm_tma_ring_plan.cuh"
#include "kernels/batchnorm/batchnorm_train_statistics.cuh"

namespace kiln {
namespace {

constexpr const char* kName = "batchnorm_fwd_train_tma_ring_kernel";
constexpr int kRows = 4;  // of a thread in a stage

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
    const int left = s.left<kRows>(ring, stage);
    Vec<T, V> rows[kRows];
    if (left == kRows) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) rows[u] = from[u * ring.stride];
      moments.template add_rows<kRows, true>(rows, kRows, pivot);
    } else {
#pragma unroll 1
      for (int u = 0; u < left; ++u) {
        rows[0] = from[u * ring.stride];
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

// Puts the block's moments where the chunks meet.
template <int V>
__device__ __forceinline__ void put_block(Moments<V>& moments, const RingTile& ring, const RingSlice& s,
                                          RingShared& shared, const BatchnormMeeting& meeting) {
  const int t = static_cast<int>(threadIdx.x), lanes = ring.rows.lanes;
  if (ring.in_warps()) {
    const int channels = lanes * V;
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
    if (t < channels) {
      const Moments<1> all = fold(shared, kRingWarps, channels, t);
      if (s.tile_channel + t < ring.rows.channels) meeting.put(t, all.mean, all.m2);
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
        shared.first[4 * t + v] = moments.mean[4 * round + v];
        shared.second[4 * t + v] = moments.m2[4 * round + v];
      }
      if (s.lane == 0) shared.count[s.row] = moments.count;
    }
    ring_sync();
    if (t < channels) {
      const Moments<1> all = fold(shared, ring.rows.block_rows, channels, t);
      const int c = t / 4 * V + 4 * round + t % 4;
      if (s.tile_channel + c < ring.rows.channels) meeting.put(c, all.mean, all.m2);
    }
  }
}

// (2) Merges the chunks: a thread its own ones of four channels, then one thread a channel.
__device__ __forceinline__ Moments<1> merge_chunks(const BatchnormMeeting& meeting, const RingTile& ring,
                                                   const RingSlice& s, RingShared& shared, int channels) {
  const int t = static_cast<int>(threadIdx.x);
  const RingMerge own = RingMerge::of(ring, s, channels);
  Moments<4> moments;
  moments.clear();
  const auto merge = [&](int chunk, const float4& mean, const float4& m2) {
    const int count = ring.rows_of(chunk);
    if (count == 0) return;
    float fraction, weight;
    moments.grow(static_cast<float>(count), fraction, weight);
    moments.merge(0, fraction, weight, mean.x, m2.x);
    moments.merge(1, fraction, weight, mean.y, m2.y);
    moments.merge(2, fraction, weight, mean.z, m2.z);
    moments.merge(3, fraction, weight, mean.w, m2.w);
  };
  if (own.owns) meeting.each_chunk<kRingBatch>(own.row, own.rows, 4 * own.quad, merge);
  if (own.row < own.rows) {
    store_channels(moments.mean, shared.first + own.row * channels + 4 * own.quad);
    store_channels(moments.m2, shared.second + own.row * channels + 4 * own.quad);
    if (own.quad == 0) shared.count[own.row] = moments.count;
  }
  ring_sync();
  Moments<1> all;
  all.clear();
  if (t < channels) all = fold(shared, own.rows, channels, t);
  return all;
}

// Leaves mean, scale and beta of the block's channels in shared.result; chunk 0 writes the statistics.
__device__ __forceinline__ void finish_channel(const Moments<1>& all, const Parameters& p,
                                               const TrainStatistics& statistics, const RingSlice& s,
                                               int rows, int c, RingShared& shared) {
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
  const int c = s.lane * V;
  load_channels(shared.result[0] + c, ch.mean);
  load_channels(shared.result[1] + c, ch.scale);
  load_channels(shared.result[2] + c, ch.beta);
  const uint64_t once = l2_policy<0>(), usual = l2_policy<1>();
  const size_t step = static_cast<size_t>(ring.rows.block_rows) * ring.rows.channels;
  walk_backwards(shared, s.stages, ring.slots, at, [&](int stage, int slot) {
    const auto* from = reinterpret_cast<const Vec<T, V>*>(slots + slot * kRingSlotBytes) + threadIdx.x;
    const int left = s.left<kRows>(ring, stage);
    T* to = y + s.first_row(ring, stage) * ring.rows.channels + s.channel;
    // As long as L2 has stages that are still to be fetched, y leaves it first.
    const uint64_t policy = s.stages > ring.slots && stage >= s.stages - ring.l2_stages ? once : usual;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (u < left) {
        Vec<T, V> row = from[u * ring.stride];
        float values[V];
#pragma unroll
        for (int v = 0; v < V; ++v) values[v] = ch.pre(v, batchnorm_centre(row[v], ch.mean[v]));
        set_clamped(row, values, clamp);
        store_hinted(row, to + u * step, policy);
      }
    }
  });
}

template <class T, int V>
__global__ __launch_bounds__(kRingBlock, 1) void batchnorm_fwd_train_tma_ring_kernel(
    const __grid_constant__ CUtensorMap x_map, const T* __restrict__ x,  // [M,C], the pivot's row
    const float* __restrict__ gamma,                                     // [C]
    const float* __restrict__ beta,                                      // [C]
    T* __restrict__ y,                                                   // [M,C]
    unsigned* words,                                                     // [2,chunks,2,C]: mean, M2
    const __grid_constant__ TrainStatistics statistics, const __grid_constant__ RingTile ring,
    const __grid_constant__ BatchnormClamp clamp) {
  extern __shared__ __align__(128) unsigned char batchnorm_ring_smem[];
  RingShared& shared = *reinterpret_cast<RingShared*>(batchnorm_ring_smem);
  unsigned char* slots = batchnorm_ring_smem + kRingSharedBytes;
  if (threadIdx.x == kRingThreads) tma_prefetch_map(&x_map);
  const RingSlice s = RingSlice::of<V>(ring);
  ring_init(shared, ring.slots);
  if (threadIdx.x >= kRingThreads) {  // the loading warp
    RingLoader<1> loader = {{&x_map}, {x}, shared, ring, s, smem_address(slots), {}};
    if (threadIdx.x == kRingThreads) {
      loader.walk_forwards();
      loader.walk_backwards();
    }
    return;
  }
  const int t = static_cast<int>(threadIdx.x), channels = ring.rows.lanes * V;
  BatchnormMeeting::bring(words, ring.rows, s.chunk, s.tile_channel, channels);
  const auto meeting = BatchnormMeeting::of(words, ring.rows, s.chunk, s.tile_channel);
  const bool finishes = t < channels && s.tile_channel + t < ring.rows.channels;
  Parameters parameters = {};
  if (finishes) {
    const int c = s.tile_channel + t;
    parameters = {to_float(x[c]), gamma[c], beta[c], statistics.running_mean[c], statistics.running_var[c]};
  }
  RingAt at;
  Moments<V> moments = thread_moments<T, V>(x, ring, s, shared, slots, at);
  put_block(moments, ring, s, shared, meeting);
  ring_sync();  // the merge uses the same shared memory
  const Moments<1> all = merge_chunks(meeting, ring, s, shared, channels);
  if (finishes) finish_channel(all, parameters, statistics, s, ring.rows.rows, t, shared);
  ring_sync();
  write_y<T, V>(y, ring, s, shared, slots, at, clamp);
}

Support supports(const BatchnormProblem& p, const Device& device) {
  if (p.residual) return Support::no("there must be no residual");
  return ring_supports(p, device);
}

template <class T, int V>
Plan<BatchnormFwdTrain::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  const auto launch =
      make_ring_launch(p, device, 1, batchnorm_fwd_train_tma_ring_kernel<T, V>, kName, config);
  using Args = BatchnormFwdTrain::Args;
  return Plan<Args>(0, [=](const Args& a, void*) {
    require_aligned_args(&a, sizeof a);
    const CUtensorMap x_map = make_ring_map(p, launch.ring, a.x);
    const TrainStatistics statistics = train_statistics(p, a);
    return Bound([=](Stream stream) {
      launch(stream, x_map, static_cast<const T*>(a.x), static_cast<const float*>(a.gamma),
             static_cast<const float*>(a.beta), static_cast<T*>(a.y), launch.words.data(), statistics,
             launch.ring, batchnorm_clamp(p.act));
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
          // Between what fits shared memory and a few MiB, and what L2 hardly helps with, on_chip is faster:
          // it leaves more of x in L2.
          constexpr double kFewMib = 34, kManyMib = 90;
          const double mib = batchnorm_mib(p);
          return ring_preferred(p, device, 1) && (mib <= kFewMib || mib >= kManyMib);
        }};

}  // namespace kiln
