// batchnorm bwd with a pool behind it: g[n,h,w,c] = dy[n,p,q,c] * act'(u[n,h,w,c]) where (h,w) is the saved
// position of window (p,q), else 0; dbeta, dgamma and dx of it as in batchnorm.h.
//
// Three launches. (1) sums: a thread owns 16 bytes of channels of windows a grid apart
// (batchnorm_windows.cuh), reads the four pixels of x, dy and V positions, and adds g and g * d, d = x -
// mean, of the chosen pixel; the threads of a channel add up in a tree through shared memory, V * 2 KiB. (2)
// merge, batchnorm_bwd_sums.cuh. (3) gradient: the same over cells, windows and what odd maps leave of one,
// where g is 0 but dx is not: all pixels of a cell are written once, the last cell first, so that it starts
// with what is still in L2; shared memory: 4 KiB of terms. Config: dx's lines may leave L2 first. Workspace:
// the sums, [chunks,2,C] fp32. C must be a multiple of 16 bytes, tensors 16-byte aligned; act is none, relu
// or relu6. Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include <type_traits>

#include "kernels/batchnorm/batchnorm_bwd_sums.cuh"
#include "kernels/batchnorm/batchnorm_windows.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kSumBlocks = 2;  // blocks a multiprocessor: all are resident
constexpr int kSumCells = 2;   // in flight
constexpr int kGradientBlocks = 3;

// A thread's part of a cell: dy, and x at the four pixels.
template <class T, int V>
struct Cell {
  Vec<T, V> dy, x[4];
  unsigned bits;  // positions, 2 a channel

  // g of channel v; d: x - mean at the four pixels, `chosen` at that of them which g belongs to.
  __device__ __forceinline__ float gate(int v, float mean, float scale, float beta,
                                        const BatchnormClamp& clamp, float (&d)[4], float& chosen) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) d[k] = batchnorm_centre(x[k][v], mean);
    const float upper = right(v) ? d[1] : d[0], below = right(v) ? d[3] : d[2];
    chosen = lower(v) ? below : upper;
    return clamp.passes(batchnorm_pre(chosen, scale, beta)) ? dy[v] : 0.0f;
  }
  __device__ __forceinline__ bool right(int v) const { return bits & 1u << 2 * v; }
  __device__ __forceinline__ bool lower(int v) const { return bits & 2u << 2 * v; }
};

template <class T, int V>
__global__ __launch_bounds__(kTileThreads, kSumBlocks) void batchnorm_bwd_windows_sums_kernel(
    const T* __restrict__ dy,               // [N,H/2,W/2,C]
    const T* __restrict__ x,                // [N,H,W,C]
    const float* __restrict__ gamma,        // [C]
    const float* __restrict__ beta,         // [C]
    const float* __restrict__ saved_mean,   // [C]
    const float* __restrict__ saved_rstd,   // [C]
    const unsigned char* __restrict__ arg,  // [N,H/2,W/2,C/4]
    float* __restrict__ partial,            // [chunks,2,C]: sum g, sum g * d
    const __grid_constant__ BatchnormCells cells, const __grid_constant__ BatchnormClamp clamp) {
  const auto s = BatchnormCellSlice::of<V>(cells.tile, blockIdx.x);
  const unsigned channels = static_cast<unsigned>(cells.tile.channels);
  float sum_g[V], sum_gd[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum_g[v] = sum_gd[v] = 0.0f;
  if (s.count > 0) {
    Channels<V> ch;
    ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
    const auto cells_at = [&](auto full, int index) {
      constexpr int kCells = decltype(full)::value ? kSumCells : 1;
      Cell<T, V> windows[kCells];
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        const int at = index + i * s.step;
        const unsigned window = static_cast<unsigned>(at) * channels + s.channel;
        const unsigned from = BatchnormCell::of(cells, at).pixel(cells) * channels + s.channel;
        windows[i].dy = Vec<T, V>::load(dy + window);
        windows[i].bits = load_positions<V>(arg, window);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          windows[i].x[k] = Vec<T, V>::load(x + (from + batchnorm_pixel_offset(cells, k)));
        }
      }
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          float d[4], chosen;
          const float g = windows[i].gate(v, ch.mean[v], ch.scale[v], ch.beta[v], clamp, d, chosen);
          sum_g[v] += g;
          sum_gd[v] += g * chosen;
        }
      }
    };
    int index = s.first, left = s.count;
    for (; left >= kSumCells; left -= kSumCells, index += kSumCells * s.step) {
      cells_at(std::true_type{}, index);
    }
    for (; left > 0; --left, index += s.step) cells_at(std::false_type{}, index);
  }
  const int row = static_cast<int>(threadIdx.x) / cells.tile.lanes;
  add_block(sum_g, sum_gd, cells.tile, row);
  if (row == 0 && s.count > 0) {
    const size_t chunk = blockIdx.x / static_cast<unsigned>(cells.tile.tiles);
    float* out = partial + chunk * 2 * channels + s.channel;
    store_channels(sum_g, out);
    store_channels(sum_gd, out + channels);
  }
}

// What dx needs of a channel: dbeta/M and rstd * dgamma/M.
struct __align__(16) Terms {
  float scale, beta, mean_g, slope;
};

// Those of the block's channels into shared memory. All threads of the block.
template <int V>
__device__ __forceinline__ void load_terms(Terms (&terms)[kTileThreads], const float* __restrict__ gamma,
                                           const float* __restrict__ beta,
                                           const float* __restrict__ saved_rstd,
                                           const float* __restrict__ dgamma, const float* __restrict__ dbeta,
                                           const BatchnormTile& tile, unsigned block, float inverse) {
  const int width = tile.lanes * V, t = static_cast<int>(threadIdx.x);
  const int c = static_cast<int>(block % tile.tiles) * width + t;
  if (t < width && c < tile.channels) {
    const float rstd = saved_rstd[c];
    terms[t] = {batchnorm_scale(gamma[c], rstd), beta[c], dbeta[c] * inverse, dgamma[c] * rstd * inverse};
  }
  __syncthreads();
}

// A channel's from shared memory. Volatile: the compiler would keep all channels' in registers, which are
// few.
__device__ __forceinline__ Terms read_terms(const Terms* from) {
  Terms terms;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(terms.scale), "=f"(terms.beta), "=f"(terms.mean_g), "=f"(terms.slope)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
  return terms;
}

// kWhole: every cell is a window. `streams`: dx's lines leave L2 first.
template <class T, int V, bool kWhole>
__global__ __launch_bounds__(kTileThreads, kGradientBlocks) void batchnorm_bwd_windows_gradient_kernel(
    const T* __restrict__ dy,               // [N,H/2,W/2,C]
    const T* __restrict__ x,                // [N,H,W,C]
    const float* __restrict__ gamma,        // [C]
    const float* __restrict__ beta,         // [C]
    const float* __restrict__ saved_mean,   // [C]
    const float* __restrict__ saved_rstd,   // [C]
    const unsigned char* __restrict__ arg,  // [N,H/2,W/2,C/4]
    const float* __restrict__ dgamma,       // [C]
    const float* __restrict__ dbeta,        // [C]
    T* __restrict__ dx,                     // [N,H,W,C]
    const __grid_constant__ BatchnormCells cells, const __grid_constant__ BatchnormClamp clamp, float inverse,
    bool streams) {
  __shared__ __align__(16) Terms terms[kTileThreads];
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  load_terms<V>(terms, gamma, beta, saved_rstd, dgamma, dbeta, cells.tile, block, inverse);
  const auto s = BatchnormCellSlice::of<V>(cells.tile, block);
  if (s.count == 0) return;
  const Terms* const own_terms = terms + threadIdx.x % cells.tile.lanes * V;
  const unsigned channels = static_cast<unsigned>(cells.tile.channels);
  float mean[V];
  load_channels(saved_mean + s.channel, mean);
#pragma unroll 1
  for (int index = s.first + (s.count - 1) * s.step; index >= 0; index -= s.step) {
    const BatchnormCell cell = BatchnormCell::of(cells, index);
    const bool wide = kWhole || 2 * cell.column + 1 < cells.width;
    const bool high = kWhole || 2 * cell.row + 1 < cells.height;
    const auto inside = [&](int k) { return (k % 2 == 0 || wide) && (k / 2 == 0 || high); };
    const unsigned first = cell.pixel(cells) * channels + s.channel;
    Cell<T, V> own{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (inside(k)) load_once(x + (first + batchnorm_pixel_offset(cells, k)), own.x[k]);
    }
    if (wide && high) {  // else dy stays 0
      const int line = cell.n * (cells.height / 2) + cell.row;
      const int window = kWhole ? index : line * (cells.width / 2) + cell.column;
      const unsigned at = static_cast<unsigned>(window) * channels + s.channel;
      load_once(dy + at, own.dy);
      own.bits = load_positions<V>(arg, at);
    }
#pragma unroll
    for (int v = 0; v < V; v += 2) {  // bf16 is rounded in pairs
      float dx_v[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const Terms of = read_terms(own_terms + v + j);
        float d[4], chosen;
        const float g = own.gate(v + j, mean[v + j], of.scale, of.beta, clamp, d, chosen);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float here = own.right(v + j) == (k % 2 == 1) && own.lower(v + j) == (k / 2 == 1) ? g : 0.0f;
          dx_v[j][k] = of.scale * (here - of.mean_g - d[k] * of.slope);
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        own.x[k].set(v, dx_v[0][k]);
        own.x[k].set(v + 1, dx_v[1][k]);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!inside(k)) continue;
      T* to = dx + (first + batchnorm_pixel_offset(cells, k));
      if (streams) {
        store_row<Store::kStreaming>(own.x[k], to);
      } else {
        store_row<Store::kPlain>(own.x[k], to);
      }
    }
  }
}

template <class T>
struct Launch {
  static constexpr int V = kVec16<T>;
  BatchnormProblem p;
  bool streams;
  BatchnormCells sums, gradient;

  Launch(const BatchnormProblem& problem, const Device& device, bool stream_dx)
      : p(problem), streams(stream_dx) {
    const int multiprocessors = std::max(1, device.multiprocessors);
    sums = make_batchnorm_cells<V>(p, kSumBlocks * multiprocessors, false);
    gradient = make_batchnorm_cells<V>(p, kGradientBlocks * multiprocessors, true);
  }
  size_t workspace_bytes() const {
    return 2 * sizeof(float) * static_cast<size_t>(sums.tile.chunks) * sums.tile.channels;
  }
  void operator()(const BatchnormBwd::Args& a, void* workspace, Stream stream) const {
    const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
    const T *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
    const auto* arg = static_cast<const unsigned char*>(a.arg);
    float *dgamma = static_cast<float*>(a.dgamma), *dbeta = static_cast<float*>(a.dbeta);
    float* partial = static_cast<float*>(workspace);
    const BatchnormClamp clamp = batchnorm_clamp(p.act);
    batchnorm_bwd_windows_sums_kernel<T, V><<<sums.tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
        dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
        per_channel(a.saved_rstd), arg, partial, sums, clamp);
    check_launch("batchnorm_bwd_windows_sums_kernel");
    launch_merge(partial, per_channel(a.saved_rstd), dgamma, dbeta, sums.tile, stream);
    const auto kernel = p.h % 2 == 0 && p.w % 2 == 0 ? batchnorm_bwd_windows_gradient_kernel<T, V, true>
                                                     : batchnorm_bwd_windows_gradient_kernel<T, V, false>;
    kernel<<<gradient.tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
        dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
        per_channel(a.saved_rstd), arg, dgamma, dbeta, static_cast<T*>(a.dx), gradient, clamp,
        static_cast<float>(1.0 / static_cast<double>(p.per_channel())), streams);
    check_launch("batchnorm_bwd_windows_gradient_kernel");
  }
};

// Where x and dx together are more than L2 holds, dx would drive out what is still to be read of x.
bool streams_by_size(const BatchnormProblem& p, const Device& device) {
  const double tensor = static_cast<double>(p.per_channel()) * p.c * static_cast<double>(size_of(p.dtype));
  return 2.25 * tensor > 0.8 * static_cast<double>(device.l2_bytes);
}

template <class T>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device, bool streams) {
  const Launch<T> launch(p, device, streams);
  return make_plan<BatchnormBwd::Args>(launch.workspace_bytes(), launch);
}

Support supports(const BatchnormProblem& p, const Device&) {
  if (!p.pool) return Support::no("there must be a pool");
  return batchnorm_normalise_supports(p);
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_windows = {
    .name = "windows",
    .supports = supports,
    .plan =
        [](const BatchnormProblem& p, const Device& device, std::string_view config) {
          if (!config.empty() && config != "stream" && config != "plain") {
            fail_usage("batchnorm: unknown config '" + std::string(config) +
                       "' of windows; known: stream, plain");
          }
          const bool streams = config.empty() ? streams_by_size(p, device) : config == "stream";
          return p.dtype == DType::kBF16 ? plan<bf16>(p, device, streams) : plan<float>(p, device, streams);
        },
    .configs = [](const BatchnormProblem& p, const Device& device) -> std::vector<std::string> {
      if (streams_by_size(p, device)) return {"stream", "plain"};
      return {"plain", "stream"};
    }};

}  // namespace kiln
