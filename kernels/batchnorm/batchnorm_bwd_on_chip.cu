// batchnorm bwd: with g[m,c] = dy[m,c] * act'(u[m,c]), or dy where the mask's bit is set, dbeta[c] = sum_m g,
// dgamma[c] = rstd[c] * sum_m g * d, d = x[m,c] - mean[c], dresidual = g, and
// dx[m,c] = gamma[c] * rstd[c] * (g - dbeta[c]/M - d * rstd[c] * dgamma[c]/M).
//
// One cooperative launch; batchnorm_on_chip.cuh says which rows of x and dy a block and a thread own and
// where they stay. (1) A thread sums g and g * d of its rows, copies run kAhead groups ahead; the threads of
// a channel add up in a tree; the block puts both sums where the chunks meet. (2) Every block adds the
// chunks of its own channels, all in the same order; the blocks of chunk 0 write dgamma and dbeta. (3) dx and
// dresidual; the mask is read again. Shared memory: 12 KiB of scratch (fp32: 7) and 12 KiB a row of a thread.
// No workspace: the plan owns where chunks meet. Needs 16-byte aligned tensors, all blocks resident.
// Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include <type_traits>

#include "kernels/batchnorm/batchnorm_bwd_pairs.cuh"
#include "kernels/batchnorm/batchnorm_gate.cuh"
#include "kernels/batchnorm/batchnorm_on_chip.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 384;
constexpr int kSlots = kThreads / 2;  // of a tree: its first round's writers are half of the threads
constexpr int kAhead = 3;             // groups of rows under way
constexpr int kBatch = 3;             // chunks in flight in a merge

// Rows that the first and the last stage take at once, and rows that registers hold.
template <class Gate>
struct OnChip {
  static constexpr int kSumRows = 4, kRows = 2, kHeld = 8;
};
template <>
struct OnChip<ByMask> {
  static constexpr int kSumRows = 4, kRows = 2, kHeld = 4;
};
template <>
struct OnChip<BySlope> {  // long code, which is not repeated for rows in registers
  static constexpr int kSumRows = 1, kRows = 1, kHeld = 0;
};

// Floats of scratch: a tree of V channels; or one of 4 and, behind it, mean_g and slope of the block.
template <int V>
constexpr int kScratch = std::max(2 * V * kSlots, 8 * kSlots + 2 * kOnChipLanes * V);

template <int V>
constexpr int kScratchBytes = kScratch<V>* static_cast<int>(sizeof(float));

// A thread's view of the tensors, by the number of its row.
template <class Gate, class T, int V>
struct Rows {
  const T* dy;  // this thread's first row
  const T* x;
  ptrdiff_t step;
  MaskWalk mask;
  Vec<T, V>* slots;  // of shared memory: x of row i at 2 * i * kThreads, dy kThreads behind it

  __device__ __forceinline__ void keep(int i, uint64_t policy) const {
    copy_once(slots + 2 * i * kThreads, x + i * step, policy);
    copy_once(slots + (2 * i + 1) * kThreads, dy + i * step, policy);
  }
  __device__ __forceinline__ void bring(int i) const {
    prefetch(x + i * step);
    prefetch(dy + i * step);
  }
  __device__ __forceinline__ void bring_bits(int i) const {
    if constexpr (Gate::kMasked) prefetch(mask.mask + mask.at + i * mask.step);
  }
  template <int kRows>
  __device__ __forceinline__ void load_bits(int i, unsigned (&bits)[kRows]) const {
    if constexpr (Gate::kMasked) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) bits[u] = mask.bits(i + u);
    }
  }
  template <int kRows>
  __device__ __forceinline__ void load_kept(int i, Vec<T, V>* dy_rows, Vec<T, V>* x_rows) const {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      x_rows[u] = slots[2 * (i + u) * kThreads];
      dy_rows[u] = slots[(2 * (i + u) + 1) * kThreads];
    }
  }
  // kOnce: the rows are not needed again.
  template <int kRows, bool kOnce>
  __device__ __forceinline__ void load(int i, Vec<T, V>* dy_rows, Vec<T, V>* x_rows) const {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if constexpr (kOnce) {
        load_once(dy + (i + u) * step, dy_rows[u]);
        load_once(x + (i + u) * step, x_rows[u]);
      } else {
        dy_rows[u] = Vec<T, V>::load(dy + (i + u) * step);
        x_rows[u] = Vec<T, V>::load(x + (i + u) * step);
      }
    }
  }
};

// Adds up the sums of threads `lanes` apart, `rows` of them, into the one with row 0.
template <int V>
__device__ __forceinline__ void add_tree(Sums<V>& sums, float* scratch, int lanes, int rows, int row) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = tree_half(rows); half > 0; half >>= 1) {
    if (row >= half && row < 2 * half && row < rows) {
      float* to = scratch + (t - half * lanes);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to[2 * v * kSlots] = sums.g[v];
        to[(2 * v + 1) * kSlots] = sums.gd[v];
      }
    }
    __syncthreads();
    if (row < half && row + half < rows) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sums.g[v] += scratch[t + 2 * v * kSlots];
        sums.gd[v] += scratch[t + (2 * v + 1) * kSlots];
      }
    }
    __syncthreads();  // the next round writes the same slots
  }
}

// The first stage: the sums of this thread's rows.
template <class Gate, class T, int V>
__device__ __forceinline__ Sums<V> thread_sums(const Rows<Gate, T, V>& rows, const OnChipRows& own,
                                               const Channels<V>& ch, const BatchnormActivation& activation,
                                               Vec<T, V>* held_dy, Vec<T, V>* held_x) {
  constexpr int kRows = OnChip<Gate>::kSumRows, kHeld = OnChip<Gate>::kHeld;
  Sums<V> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) sums.g[v] = sums.gd[v] = 0.0f;
  const uint64_t policy = evict_first_policy();
  const auto fetch = [&](int first) {
#pragma unroll
    for (int u = 0; u < kOnChipGroup; ++u) {
      const int i = first + u;
      if (i < own.kept) {
        rows.keep(i, policy);
      } else if (i < own.count) {
        rows.bring(i);
      }
      if (i < own.count) rows.bring_bits(i);
    }
    cp_async_commit();
  };
  const auto add = [&](auto size, int i, Vec<T, V>* dy_rows, Vec<T, V>* x_rows) {
    constexpr int kNow = decltype(size)::value;
    unsigned bits[kNow] = {};
    rows.load_bits(i, bits);
    sum_rows<Gate, kNow, true>(dy_rows, x_rows, bits, kNow, ch, activation, sums.g, sums.gd);
  };
  for (int g = 0; g < kAhead; ++g) fetch(g * kOnChipGroup);
  for (int i = 0; i < own.kept; i += kOnChipGroup) {
    cp_async_wait<kAhead - 1>();
    each_rows<kRows>(i, min(own.kept, i + kOnChipGroup), [&](auto size, int at) {
      Vec<T, V> dy_rows[decltype(size)::value], x_rows[decltype(size)::value];
      rows.template load_kept<decltype(size)::value>(at, dy_rows, x_rows);
      add(size, at, dy_rows, x_rows);
    });
    fetch(i + kAhead * kOnChipGroup);
  }
  for (int i = own.kept; i < own.held; i += kOnChipGroup) {
    fetch(i + kAhead * kOnChipGroup);
    each_rows<kRows>(i, min(own.held, i + kOnChipGroup), [&](auto size, int at) {
      Vec<T, V> dy_rows[decltype(size)::value], x_rows[decltype(size)::value];
      rows.template load<decltype(size)::value, false>(at, dy_rows, x_rows);
      add(size, at, dy_rows, x_rows);
    });
  }
#pragma unroll
  for (int u = 0; u < kHeld; u += kOnChipGroup) {
    if (u < own.count - own.held) {
      rows.template load<kOnChipGroup, true>(own.held + u, held_dy + u, held_x + u);
    }
  }
#pragma unroll
  for (int u = 0; u < kHeld; u += kRows) {
    if (u < own.count - own.held) {
      add(std::integral_constant<int, kRows>{}, own.held + u, held_dy + u, held_x + u);
    }
  }
  return sums;
}

// The second stage: adds the chunks and gives dbeta/M and rstd * dgamma/M of the thread's channels.
template <int V>
__device__ __forceinline__ void merge_chunks(const BatchnormMeeting& meeting,
                                             const float* __restrict__ saved_rstd,  // [C]
                                             float* __restrict__ dgamma,            // [C]
                                             float* __restrict__ dbeta,             // [C]
                                             const BatchnormTile& tile, const BatchnormSlice& s,
                                             float* scratch, float (&mean_g)[V], float (&slope)[V]) {
  const OnChipMerge m = OnChipMerge::of<V, kThreads>(tile, s);
  Sums<4> sums = {};
  const auto add = [&](int, const float4& g, const float4& gd) { add_chunk(sums, g, gd); };
  if (m.owns) meeting.each_chunk<kBatch>(m.row, m.rows, 4 * m.quad, add);
  add_tree(sums, scratch, m.quads, m.rows, m.row);
  float* s_mean = scratch + 8 * kSlots;  // behind the tree
  float* s_slope = s_mean + kOnChipLanes * V;
  if (m.owns && m.row == 0) {
    const float inverse = 1.0f / static_cast<float>(tile.rows);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int c = m.channel + v, at = 4 * m.quad + v;
      const float rstd = saved_rstd[c], scale = sums.gd[v] * rstd;
      s_mean[at] = sums.g[v] * inverse;
      s_slope[at] = scale * (rstd * inverse);
      if (s.chunk == 0) {
        dbeta[c] = sums.g[v];
        dgamma[c] = scale;
      }
    }
  }
  __syncthreads();
  const int first = s.count > 0 ? s.channel - s.tile * tile.lanes * V : 0;
  load_channels(s_mean + first, mean_g);
  load_channels(s_slope + first, slope);
}

template <class Gate, class T, int V>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_bwd_on_chip_kernel(
    const T* __restrict__ dy,                // [M,C]
    const T* __restrict__ x,                 // [M,C]
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ saved_mean,    // [C]
    const float* __restrict__ saved_rstd,    // [C]
    const unsigned char* __restrict__ mask,  // [M,ceil(C/8)], null without
    T* __restrict__ dx,                      // [M,C]
    float* __restrict__ dgamma,              // [C]
    float* __restrict__ dbeta,               // [C]
    T* __restrict__ dresidual,               // [M,C], null without a mask
    unsigned* words,                         // [2,chunks,2,C]: sum g, sum g * d
    const __grid_constant__ OnChipTile layout, const __grid_constant__ BatchnormActivation activation) {
  constexpr int kRows = OnChip<Gate>::kRows, kHeld = OnChip<Gate>::kHeld;
  extern __shared__ float4 batchnorm_on_chip_smem[];
  float* scratch = reinterpret_cast<float*>(batchnorm_on_chip_smem);
  const BatchnormTile& tile = layout.rows;
  const BatchnormSlice s = batchnorm_slice<V>(tile, blockIdx.x);
  const OnChipRows own = OnChipRows::split<kHeld>(s.count, layout.kept);
  const Rows<Gate, T, V> rows = {dy + s.first, x + s.first, static_cast<ptrdiff_t>(s.step),
                                 MaskWalk::begin<Gate, V>(mask, tile, s, 0, 1),
                                 reinterpret_cast<Vec<T, V>*>(scratch + kScratch<V>) + threadIdx.x};
  BatchnormMeeting::bring(words, tile, s.chunk, s.tile * tile.lanes * V, tile.lanes * V);
  Channels<V> ch;
  ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
  Vec<T, V> held_dy[kHeld > 0 ? kHeld : 1], held_x[kHeld > 0 ? kHeld : 1];
  Sums<V> sums = thread_sums(rows, own, ch, activation, held_dy, held_x);
  const auto meeting = BatchnormMeeting::of(words, tile, s.chunk, s.tile * tile.lanes * V);
  add_tree(sums, scratch, tile.lanes, tile.block_rows, s.row);
  if (s.row == 0 && s.count > 0) {
    meeting.put(s.channel - meeting.channel, sums.g, sums.gd);
  }
  float mean_g[V], slope[V];
  merge_chunks<V>(meeting, saved_rstd, dgamma, dbeta, tile, s, scratch, mean_g, slope);

  const auto store = [&](auto size, auto plain, int i, Vec<T, V>* dy_rows, Vec<T, V>* x_rows) {
    constexpr int kNow = decltype(size)::value;
    constexpr Store kStore = decltype(plain)::value ? Store::kPlain : Store::kStreaming;
    unsigned bits[kNow] = {};
    rows.load_bits(i, bits);
    const size_t at = s.first + i * s.step;
    gradient_rows<Gate, kNow, true, kStore>(dy_rows, x_rows, bits, dx + at,
                                            Gate::kMasked ? dresidual + at : nullptr, rows.step, kNow, ch,
                                            mean_g, slope, activation);
  };
  each_rows_backwards<kRows>(own.kept, own.held, [&](auto size, int at) {
    constexpr int kNow = decltype(size)::value;
    Vec<T, V> dy_rows[kNow], x_rows[kNow];
    rows.template load<kNow, true>(at, dy_rows, x_rows);
#pragma unroll
    for (int u = 0; u < kNow; ++u) {
      if (at + u - kOnChipAhead >= own.kept) rows.bring(at + u - kOnChipAhead);
    }
    store(size, std::false_type{}, at, dy_rows, x_rows);
  });
  each_rows<kRows>(0, own.kept, [&](auto size, int at) {
    constexpr int kNow = decltype(size)::value;
    Vec<T, V> dy_rows[kNow], x_rows[kNow];
    rows.template load_kept<kNow>(at, dy_rows, x_rows);
    store(size, std::true_type{}, at, dy_rows, x_rows);
  });
#pragma unroll
  for (int u = 0; u < kHeld; u += kRows) {
    if (u < own.count - own.held) {
      store(std::integral_constant<int, kRows>{}, std::true_type{}, own.held + u, held_dy + u, held_x + u);
    }
  }
}

Support supports(const BatchnormProblem& p, const Device& device) { return on_chip_supports(p, device, 2); }

template <class Gate, class T, int V>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device, std::string_view config) {
  constexpr int kSlotBytes = 2 * kThreads * static_cast<int>(sizeof(Vec<T, V>));
  const OnChipTile layout = make_on_chip_tile<V>(p, device, kThreads, kSlotBytes, kScratchBytes<V>, config);
  const int smem_bytes = kScratchBytes<V> + layout.kept * kSlotBytes;
  const auto kernel = batchnorm_bwd_on_chip_kernel<Gate, T, V>;
  allow_on_chip(kernel, device, "batchnorm_bwd_on_chip_kernel");
  const BatchnormMeetingWords words(layout.rows);
  using Args = BatchnormBwd::Args;
  return make_plan<Args>(0, [=](const Args& a, void*, Stream stream) {
    const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
    launch_on_chip(kernel, "batchnorm_bwd_on_chip_kernel", layout.rows, kThreads, smem_bytes, stream,
                   static_cast<const T*>(a.dy), static_cast<const T*>(a.x), per_channel(a.gamma),
                   per_channel(a.beta), per_channel(a.saved_mean), per_channel(a.saved_rstd),
                   static_cast<const unsigned char*>(a.mask), static_cast<T*>(a.dx),
                   static_cast<float*>(a.dgamma), static_cast<float*>(a.dbeta), static_cast<T*>(a.dresidual),
                   words.data(), layout, batchnorm_activation(p));
  });
}

template <class T, int V>
Plan<BatchnormBwd::Args> plan_gate(const BatchnormProblem& p, const Device& device, std::string_view config) {
  if (p.masked()) return plan<ByMask, T, V>(p, device, config);
  if (batchnorm_is_smooth(p.act)) return plan<BySlope, T, V>(p, device, config);
  return plan<ByClamp, T, V>(p, device, config);
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_on_chip = {
    .name = "on_chip",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          return p.dtype == DType::kBF16 ? plan_gate<bf16, kVec16<bf16>>(p, device, config)
                                         : plan_gate<float, kVec16<float>>(p, device, config);
        },
    .configs = on_chip_configs};

}  // namespace kiln
