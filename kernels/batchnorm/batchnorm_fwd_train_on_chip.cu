// batchnorm fwd_train: mean[c], rstd[c] over the M rows, running statistics, then
// y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] + beta[c] + residual[m,c]) and act's mask.
//
// One cooperative launch; batchnorm_on_chip.cuh says which rows a block and a thread own and where they stay.
// (1) A thread takes its rows in groups, sums squares about a group's mean and merges (count, mean, M2);
// copies run kAhead groups ahead. The threads of a channel merge in a tree; the block puts mean and M2 where
// the chunks meet. (2) Every block merges the chunks of its own channels, all in the same order; the blocks
// of chunk 0 write the statistics. (3) y. All moments are of x - x[0,c]. Shared memory: 17 KiB of scratch
// (fp32: 10.5) and 8 KiB a row of a thread. No workspace: the plan owns where chunks meet. Needs 16-byte
// aligned tensors, all blocks resident. Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include <type_traits>

#include "kernels/batchnorm/batchnorm_epilogue.cuh"
#include "kernels/batchnorm/batchnorm_moments.cuh"
#include "kernels/batchnorm/batchnorm_on_chip.cuh"
#include "kernels/batchnorm/batchnorm_train_statistics.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 512;
constexpr int kSlots = kThreads / 2;  // of a tree: its first round's writers are half of the threads
constexpr int kGroup = kOnChipGroup;
constexpr int kAhead = 4;  // groups under way

// Chunks in flight in a merge: one more would spill, since registers are full of rows.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <int V>
constexpr int kBatch = 1;
#else
template <int V>
constexpr int kBatch = V == 8 ? 2 : 1;
#endif

// Rows in flight in the last stage, and rows that registers hold.
template <class Epilogue>
struct OnChip {
  static constexpr int kRows = 2, kHeld = 16;
};
template <>
struct OnChip<ResidualClamped> {
  static constexpr int kRows = 2, kHeld = 12;
};
template <>
struct OnChip<Smooth> {  // long code, which is not repeated for rows in registers
  static constexpr int kRows = 1, kHeld = 0;
};

// Floats of scratch: a tree of V channels; or one of 4 and, behind it, mean, scale and beta of the block.
template <int V>
constexpr int kScratch = std::max((2 * V + 1) * kSlots, 9 * kSlots + 3 * kOnChipLanes * V);

template <int V>
constexpr int kScratchBytes = kScratch<V>* static_cast<int>(sizeof(float));

// Merges the moments of threads `lanes` apart, `rows` of them, into the one with row 0.
template <int V>
__device__ __forceinline__ void merge_tree(Moments<V>& moments, float* scratch, int lanes, int rows,
                                           int row) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = tree_half(rows); half > 0; half >>= 1) {
    if (row >= half && row < 2 * half && row < rows) {
      float* to = scratch + (t - half * lanes);
      to[0] = moments.count;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to[(1 + 2 * v) * kSlots] = moments.mean[v];
        to[(2 + 2 * v) * kSlots] = moments.m2[v];
      }
    }
    __syncthreads();
    if (row < half && row + half < rows && scratch[t] > 0.0f) {
      float fraction, weight;
      moments.grow(scratch[t], fraction, weight);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        moments.merge(v, fraction, weight, scratch[t + (1 + 2 * v) * kSlots],
                      scratch[t + (2 + 2 * v) * kSlots]);
      }
    }
    __syncthreads();  // the next round writes the same slots
  }
}

// The first stage: moments of x - pivot of this thread's rows.
template <class T, int V, int kHeld>
__device__ __forceinline__ Moments<V> thread_moments(const T* __restrict__ x, const BatchnormSlice& s,
                                                     const OnChipRows& own, Vec<T, V>* slots,
                                                     Vec<T, V>* held) {
  Moments<V> moments;
  moments.clear();
  if (own.count == 0) return moments;
  const uint64_t policy = evict_first_policy();
  const T* from = x + s.first;
  const auto fetch = [&](int first) {
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
      const int i = first + u;
      if (i < own.kept) {
        copy_once(slots + i * kThreads, from + i * s.step, policy);
      } else if (i < own.count) {
        prefetch(from + i * s.step);
      }
    }
    cp_async_commit();
  };
  for (int g = 0; g < kAhead; ++g) fetch(g * kGroup);
  float pivot[V];
  const auto first = Vec<T, V>::load(x + s.channel);
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = first[v];
  for (int i = 0; i < own.kept; i += kGroup) {
    cp_async_wait<kAhead - 1>();
    each_rows<kGroup>(i, min(own.kept, i + kGroup), [&](auto size, int at) {
      constexpr int kRows = decltype(size)::value;
      Vec<T, V> rows[kRows];
#pragma unroll
      for (int u = 0; u < kRows; ++u) rows[u] = slots[(at + u) * kThreads];
      moments.template add_rows<kRows, true>(rows, kRows, pivot);
    });
    fetch(i + kAhead * kGroup);
  }
  each_rows<kGroup>(own.kept, own.held, [&](auto size, int at) {
    constexpr int kRows = decltype(size)::value;
    Vec<T, V> rows[kRows];
    fetch(at + kAhead * kGroup);
    load_rows<T, V, kRows, true>(from + at * s.step, static_cast<ptrdiff_t>(s.step), kRows, rows);
    moments.template add_rows<kRows, true>(rows, kRows, pivot);
  });
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (u < own.count - own.held) load_once(from + (own.held + u) * s.step, held[u]);
  }
#pragma unroll
  for (int u = 0; u < kHeld; u += kGroup) {
    if (u < own.count - own.held) moments.template add_rows<kGroup, true>(held + u, kGroup, pivot);
  }
  return moments;
}

// The second stage: merges the chunks and leaves mean, scale and beta of the block's channels in scratch,
// from where each thread takes its own.
template <class T, int V>
__device__ __forceinline__ Channels<V> merge_chunks(
    const T* __restrict__ x,          // [M,C], of which the first row is the pivot
    const float* __restrict__ gamma,  // [C]
    const float* __restrict__ beta,   // [C]
    const BatchnormMeeting& meeting, const BatchnormTile& tile, const BatchnormSlice& s,
    const TrainStatistics& statistics, float* scratch) {
  const OnChipMerge m = OnChipMerge::of<V, kThreads>(tile, s);
  Moments<4> moments;
  moments.clear();
  const auto merge = [&](int chunk, const float4& mean, const float4& m2) {
    float fraction, weight;
    moments.grow(static_cast<float>(tile.chunk_begin(chunk + 1) - tile.chunk_begin(chunk)), fraction, weight);
    moments.merge(0, fraction, weight, mean.x, m2.x);
    moments.merge(1, fraction, weight, mean.y, m2.y);
    moments.merge(2, fraction, weight, mean.z, m2.z);
    moments.merge(3, fraction, weight, mean.w, m2.w);
  };
  if (m.owns) meeting.each_chunk<kBatch<V>>(m.row, m.rows, 4 * m.quad, merge);
  merge_tree(moments, scratch, m.quads, m.rows, m.row);
  float* s_mean = scratch + 9 * kSlots;  // behind the tree
  float *s_scale = s_mean + kOnChipLanes * V, *s_beta = s_scale + kOnChipLanes * V;
  if (m.owns && m.row == 0) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int c = m.channel + v, at = 4 * m.quad + v;
      const float mean = to_float(x[c]) + moments.mean[v];
      const float var = moments.m2[v] / static_cast<float>(tile.rows);
      const float rstd = batchnorm_rstd(var, statistics.eps);
      s_mean[at] = mean;
      s_scale[at] = batchnorm_scale(gamma[c], rstd);
      s_beta[at] = beta[c];
      if (s.chunk == 0) statistics.write(c, mean, var, rstd);
    }
  }
  __syncthreads();
  Channels<V> ch;
  const int first = s.count > 0 ? s.channel - s.tile * tile.lanes * V : 0;
  load_channels(s_mean + first, ch.mean);
  load_channels(s_scale + first, ch.scale);
  load_channels(s_beta + first, ch.beta);
  return ch;
}

template <class Epilogue, class T, int V>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_fwd_train_on_chip_kernel(
    const T* __restrict__ x,           // [M,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const T* __restrict__ residual,    // [M,C], null where the epilogue has none
    T* __restrict__ y,                 // [M,C]
    unsigned char* __restrict__ mask,  // [M,C/8] or null
    unsigned* words,                   // [2,chunks,2,C]: mean of x - pivot, M2
    const __grid_constant__ TrainStatistics statistics, const __grid_constant__ OnChipTile layout,
    const __grid_constant__ BatchnormActivation activation) {
  constexpr int kRows = OnChip<Epilogue>::kRows, kHeld = OnChip<Epilogue>::kHeld;
  extern __shared__ float4 batchnorm_on_chip_smem[];
  float* scratch = reinterpret_cast<float*>(batchnorm_on_chip_smem);
  Vec<T, V>* slots = reinterpret_cast<Vec<T, V>*>(scratch + kScratch<V>) + threadIdx.x;
  const BatchnormTile& tile = layout.rows;
  const BatchnormSlice s = batchnorm_slice<V>(tile, blockIdx.x);
  const OnChipRows own = OnChipRows::split<kHeld>(s.count, layout.kept);
  BatchnormMeeting::bring(words, tile, s.chunk, s.tile * tile.lanes * V, tile.lanes * V);
  if (const OnChipMerge m = OnChipMerge::of<V, kThreads>(tile, s); m.owns && m.row == 0) {
    prefetch(gamma + m.channel);  // the merge waits for them
    prefetch(beta + m.channel);
    prefetch(statistics.running_mean + m.channel);
    prefetch(statistics.running_var + m.channel);
  }
  Vec<T, V> held[kHeld > 0 ? kHeld : 1];
  Moments<V> moments = thread_moments<T, V, kHeld>(x, s, own, slots, held);
  const auto meeting = BatchnormMeeting::of(words, tile, s.chunk, s.tile * tile.lanes * V);
  merge_tree(moments, scratch, tile.lanes, tile.block_rows, s.row);
  if (s.row == 0 && s.count > 0) {
    meeting.put(s.channel - meeting.channel, moments.mean, moments.m2);
  }
  const ptrdiff_t step = static_cast<ptrdiff_t>(s.step);
  const auto prefetch_residual = [&](int i) {
    if constexpr (Epilogue::kResidual) prefetch(residual + s.first + i * step);
  };
#pragma unroll
  for (int u = 0; u < (Epilogue::kResidual ? kOnChipAhead : 0); ++u) {  // while memory idles
    if (own.held - 1 - u >= own.kept) prefetch_residual(own.held - 1 - u);
    if (u < own.kept) prefetch_residual(u);
  }
  const Channels<V> ch = merge_chunks<T, V>(x, gamma, beta, meeting, tile, s, statistics, scratch);

  each_rows_backwards<kRows>(own.kept, own.held, [&](auto size, int at) {
    constexpr int kNow = decltype(size)::value;
    Vec<T, V> rows[kNow];
#pragma unroll
    for (int u = 0; u < kNow; ++u) {
      load_once(x + s.first + (at + u) * step, rows[u]);
      const int next = at + u - kOnChipAhead;
      if (next >= own.kept) {
        prefetch(x + s.first + next * step);
        prefetch_residual(next);
      }
    }
    normalise_rows<Epilogue, kNow, true, Store::kStreaming>(rows, residual, y, mask, s.first + at * step,
                                                            step, kNow, ch, activation);
  });
  each_rows<kRows>(0, own.kept, [&](auto size, int at) {
    constexpr int kNow = decltype(size)::value;
    Vec<T, V> rows[kNow];
#pragma unroll
    for (int u = 0; u < kNow; ++u) {
      rows[u] = slots[(at + u) * kThreads];
      int next = at + u + kOnChipAhead;
      next += next < own.kept ? 0 : own.held - own.kept;
      if (next < own.count) prefetch_residual(next);
    }
    normalise_rows<Epilogue, kNow, true, Store::kPlain>(rows, residual, y, mask, s.first + at * step, step,
                                                        kNow, ch, activation);
  });
#pragma unroll
  for (int u = 0; u < kHeld; u += kRows) {
    if (u < own.count - own.held) {
      normalise_rows<Epilogue, kRows, true, Store::kPlain>(
          held + u, residual, y, mask, s.first + (own.held + u) * step, step, kRows, ch, activation);
    }
  }
}

Support supports(const BatchnormProblem& p, const Device& device) { return on_chip_supports(p, device, 1); }

template <class Epilogue, class T, int V>
Plan<BatchnormFwdTrain::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  constexpr int kSlotBytes = kThreads * static_cast<int>(sizeof(Vec<T, V>));
  const OnChipTile layout = make_on_chip_tile<V>(p, device, kThreads, kSlotBytes, kScratchBytes<V>, config);
  const int smem_bytes = kScratchBytes<V> + layout.kept * kSlotBytes;
  const auto kernel = batchnorm_fwd_train_on_chip_kernel<Epilogue, T, V>;
  allow_on_chip(kernel, device, "batchnorm_fwd_train_on_chip_kernel");
  const BatchnormMeetingWords words(layout.rows);
  using Args = BatchnormFwdTrain::Args;
  return make_plan<Args>(0, [=](const Args& a, void*, Stream stream) {
    const TrainStatistics statistics = train_statistics(p, a);
    launch_on_chip(kernel, "batchnorm_fwd_train_on_chip_kernel", layout.rows, kThreads, smem_bytes, stream,
                   static_cast<const T*>(a.x), static_cast<const float*>(a.gamma),
                   static_cast<const float*>(a.beta), static_cast<const T*>(a.residual), static_cast<T*>(a.y),
                   static_cast<unsigned char*>(a.mask), words.data(), statistics, layout,
                   batchnorm_activation(p));
  });
}

template <class T, int V>
Plan<BatchnormFwdTrain::Args> plan_epilogue(const BatchnormProblem& p, const Device& device,
                                            std::string_view config) {
  if (p.residual) return plan<ResidualClamped, T, V>(p, device, config);
  if (batchnorm_is_smooth(p.act)) return plan<Smooth, T, V>(p, device, config);
  return plan<Clamped, T, V>(p, device, config);
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_on_chip = {
    .name = "on_chip",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          return p.dtype == DType::kBF16 ? plan_epilogue<bf16, kVec16<bf16>>(p, device, config)
                                         : plan_epilogue<float, kVec16<float>>(p, device, config);
        },
    .configs = on_chip_configs};

}  // namespace kiln
