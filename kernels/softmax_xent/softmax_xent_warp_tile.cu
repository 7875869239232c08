// softmax_xent fwd and fwd_bwd for few classes: formulas in softmax_xent.h.
//
// A warp owns tiles of 32 rows, a thread a row of each, held in registers (kMost >= K of them). The rows of a
// tile are 32*K elements, so always whole 16-byte vectors at a 16-byte address: the warp reads them and
// writes dx coalesced, through its own piece of shared memory, and waits for no other warp. Rows there are 4
// bytes apart more than their length where that is a multiple of 16 bytes, so that threads hit different
// banks. Losses are summed by block, then by the last block (softmax_xent_finish); a grid of one block, for
// few rows, skips that. Shared memory: 32 * (row bytes + 4) a warp. Workspace: [blocks,2] fp32. At most
// kMostClasses classes. Deterministic. Mirrors cpu_reference/softmax_xent_naive.cpp.
#include "kernels/common/grid.h"
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {
namespace {

constexpr int kMostClasses = 32;
template <int kMost>
constexpr int kMostWarps = kMost <= 16 ? 32 : 16;  // of a block: what registers are there for
constexpr int kSingleRows = 1024;                  // up to which one block is the default
constexpr int kBlocksPerMultiprocessor = 16;

// A tile in shared memory: element (row, k) is at row * stride + k.
struct TileShape {
  int row_vectors;  // 16-byte vectors of a row where rows are padded, else 0
  int stride;       // elements
};

template <class T>
TileShape tile_shape(int classes) {
  constexpr int V = kVec16<T>, kWord = 4 / static_cast<int>(sizeof(T));
  return classes % V == 0 ? TileShape{classes / V, classes + kWord} : TileShape{0, classes};
}

// Words of shared memory before vector v of the tile.
__device__ __forceinline__ int word_of(int v, const TileShape& shape) {
  return 4 * v + (shape.row_vectors > 0 ? v / shape.row_vectors : 0);
}

// Copies `elements` of x, from a 16-byte aligned address, to the warp's tile. All loads are under way before
// the first store.
template <class T, int kMost>
__device__ __forceinline__ void load_tile(const T* __restrict__ x, int elements, const TileShape& shape,
                                          T* tile) {
  constexpr int V = kVec16<T>, kRounds = kMost / V + (kMost % V > 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, vectors = elements / V;
  const int rest = vectors * V + lane;  // what is left of the last tile: its rows are not padded
  uint4 held[kRounds];
  T last = from_float<T>(0.0f);
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    if (lane + 32 * i < vectors) held[i] = __ldcs(reinterpret_cast<const uint4*>(x) + lane + 32 * i);
  }
  if (rest < elements) last = x[rest];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    if (lane + 32 * i >= vectors) continue;
    unsigned* to = reinterpret_cast<unsigned*>(tile) + word_of(lane + 32 * i, shape);
    to[0] = held[i].x;
    to[1] = held[i].y;
    to[2] = held[i].z;
    to[3] = held[i].w;
  }
  if (rest < elements) tile[rest] = last;
}

template <class T, int kMost>
__device__ __forceinline__ void store_tile(const T* tile, int elements, const TileShape& shape,
                                           T* __restrict__ dx) {
  constexpr int V = kVec16<T>, kRounds = kMost / V + (kMost % V > 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, vectors = elements / V;
  const int rest = vectors * V + lane;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    if (lane + 32 * i >= vectors) continue;
    const unsigned* from = reinterpret_cast<const unsigned*>(tile) + word_of(lane + 32 * i, shape);
    reinterpret_cast<uint4*>(dx)[lane + 32 * i] = make_uint4(from[0], from[1], from[2], from[3]);
  }
  if (rest < elements) dx[rest] = tile[rest];
}

// The loss of a row in shared memory; its logits become their gradient where kGradient.
template <class T, int kMost, bool kGradient>
__device__ __forceinline__ float one_row(T* row, int label, int classes, const SoftmaxXentScale& scale,
                                         float& correct) {
  const bool valid = static_cast<unsigned>(label) < static_cast<unsigned>(classes);
  const float x_label = valid ? to_float(row[label]) : __int_as_float(0x7fc00000);
  float value[kMost], most = -INFINITY;
#pragma unroll
  for (int k = 0; k < kMost; ++k) {
    value[k] = k < classes ? to_float(row[k]) : -INFINITY;
    most = fmaxf(most, value[k]);
  }
  int best = -1;  // the first largest
#pragma unroll
  for (int k = kMost - 1; k >= 0; --k) best = value[k] == most ? k : best;
  float sum = 0.0f, sum_z = 0.0f;
#pragma unroll
  for (int k = 0; k < kMost; ++k) {
    const float z = value[k] - most;
    value[k] = softmax_xent_exp<T>(z);
    sum += k < classes ? value[k] : 0.0f;
    sum_z += k < classes ? z : 0.0f;
  }
  const float loss = softmax_xent_loss(sum, sum_z, x_label - most, classes, scale);
  correct = best == label && !isnan(loss) ? 1.0f : 0.0f;
  if constexpr (kGradient) {
    const float inverse = valid ? 1.0f / sum : x_label;  // a wrong label makes the whole row NaN
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      if (k < classes) {
        row[k] = from_float<T>(softmax_xent_gradient(value[k] * inverse, k == label, scale));
      }
    }
  }
  return loss;
}

template <class T, int kMost, bool kGradient>
__global__ __launch_bounds__(kMostWarps<kMost> * 32) void softmax_xent_warp_tile_kernel(
    const T* __restrict__ x,         // [N,K]
    const int* __restrict__ labels,  // [N]
    float* __restrict__ row_loss,    // [N]
    float* __restrict__ summary,     // [2]
    T* __restrict__ dx,              // [N,K], unused without kGradient
    float* __restrict__ partial,     // [blocks,2]
    unsigned* __restrict__ done,     // [1]
    int rows, int classes, const __grid_constant__ TileShape shape,
    const __grid_constant__ SoftmaxXentScale scale) {
  extern __shared__ uint4 tiles[];  // a warp: [32][stride] T
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  T* tile = reinterpret_cast<T*>(tiles) + warp * 32 * shape.stride;
  float loss_sum = 0.0f, correct_sum = 0.0f;
  const int tile_count = (rows - 1) / 32 + 1;
  for (int i = static_cast<int>(blockIdx.x) * warps + warp; i < tile_count;
       i += static_cast<int>(gridDim.x) * warps) {
    const int here = min(32, rows - 32 * i), elements = here * classes;  // the last tile may have fewer rows
    const size_t n = static_cast<size_t>(32) * i + lane, base = static_cast<size_t>(32) * i * classes;
    const int label = lane < here ? labels[n] : 0;
    load_tile<T, kMost>(x + base, elements, shape, tile);
    __syncwarp();
    if (lane < here) {
      float correct;
      const float loss =
          one_row<T, kMost, kGradient>(tile + lane * shape.stride, label, classes, scale, correct);
      row_loss[n] = loss;
      loss_sum += loss;
      correct_sum += correct;
    }
    __syncwarp();
    if constexpr (kGradient) {
      store_tile<T, kMost>(tile, elements, shape, dx + base);
      __syncwarp();  // before the next tile comes
    }
  }
  softmax_xent_finish(loss_sum, correct_sum, warps, scale, partial, done, summary);
}

Support supports(const SoftmaxXentProblem& p, const Device&) {
  return Support::require(p.c <= kMostClasses, "warp_tile takes at most 32 classes");
}

// Warps of a block, and whether there is one block only.
struct Config {
  int warps;
  bool single;
};

constexpr Config kConfigs[] = {{4, false}, {8, false}, {16, false}, {32, true}};

std::string config_name(const Config& config) {
  return config.single ? "one" : std::string("w").append(std::to_string(config.warps));
}

std::vector<std::string> configs(const SoftmaxXentProblem& p, const Device&) {
  std::vector<std::string> names;
  for (const Config& config : kConfigs) {
    if (!config.single || p.n <= 8 * kSingleRows) names.push_back(config_name(config));
  }
  return names;
}

// The default: all rows in one block where a thread has one, else small blocks, which spread evenly, but no
// more than two a multiprocessor, as the last to end adds up what each has left.
Config choose(const SoftmaxXentProblem& p, const Device& device, std::string_view name) {
  if (name.empty()) {
    if (p.n <= kSingleRows) return {ceil_div(p.n, 32), true};
    return {ceil_div(p.n, 4 * 32) <= 2 * device.multiprocessors ? 4 : 8, false};
  }
  for (const Config& config : kConfigs) {
    if (config_name(config) == name) return config;
  }
  fail_usage("unknown config '" + std::string(name) + "'; known: w4, w8, w16, one");
}

template <class T, int kMost, bool kGradient, class Args>
Plan<Args> make(const SoftmaxXentProblem& p, const Device& device, const Config& config) {
  const TileShape shape = tile_shape<T>(p.c);
  const int tile_bytes = 32 * shape.stride * static_cast<int>(sizeof(T));
  // A block's tiles fit the 48 KiB of an ordinary launch, of which softmax_xent_finish has some.
  const int warps =
      std::max(1, std::min({config.warps, kMostWarps<kMost>, (46 << 10) / tile_bytes, ceil_div(p.n, 32)}));
  const long long most = 1LL * kBlocksPerMultiprocessor * std::max(1, device.multiprocessors);
  const int blocks = config.single ? 1 : static_cast<int>(grid_for(p.n, 32 * warps, most));
  return softmax_xent_plan<Args>(blocks, [=](const Args& a, float* partial, unsigned* done, Stream stream) {
    T* dx = nullptr;
    if constexpr (kGradient) dx = static_cast<T*>(a.dx);
    softmax_xent_warp_tile_kernel<T, kMost, kGradient>
        <<<blocks, 32 * warps, warps * tile_bytes, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const int*>(a.labels), static_cast<float*>(a.row_loss),
            static_cast<float*>(a.summary), dx, partial, done, p.n, p.c, shape, softmax_xent_scale(p));
    check_launch("softmax_xent_warp_tile_kernel");
  });
}

template <class Pass, class T>
Plan<typename Pass::Args> plan_typed(const SoftmaxXentProblem& p, const Device& device,
                                     const Config& config) {
  using Args = typename Pass::Args;
  constexpr bool kGradient = requires(Args a) { a.dx; };
  return p.c <= 10   ? make<T, 10, kGradient, Args>(p, device, config)
         : p.c <= 16 ? make<T, 16, kGradient, Args>(p, device, config)
                     : make<T, kMostClasses, kGradient, Args>(p, device, config);
}

template <class Pass>
Plan<typename Pass::Args> plan(const SoftmaxXentProblem& p, const Device& device, std::string_view config) {
  const Config chosen = choose(p, device, config);
  return p.dtype == DType::kBF16 ? plan_typed<Pass, bf16>(p, device, chosen)
                                 : plan_typed<Pass, float>(p, device, chosen);
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_warp_tile = {
    .name = "warp_tile", .supports = supports, .plan = plan<SoftmaxXentFwd>, .configs = configs};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_warp_tile = {
    .name = "warp_tile", .supports = supports, .plan = plan<SoftmaxXentFwdBwd>, .configs = configs};

}  // namespace kiln
