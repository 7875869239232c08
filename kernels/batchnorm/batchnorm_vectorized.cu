// batchnorm fwd_apply and fwd_infer: y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] + beta[c]), also
// the last stage of fwd_train.
//
// batchnorm_tile.cuh says what a block and a thread own; a thread moves 16 bytes an access, kRows rows in
// flight. Blocks and rows run from the last to the first: what the kernel before wrote or read last is still
// in L2. Channel counts that fill no vector go one channel a thread. No shared memory. Needs 16-byte aligned
// tensors (make_plan checks). Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kRows = 4;
constexpr int kBlocksPerMultiprocessor = 8;

template <class T, int V, bool kFull>
__device__ __forceinline__ void normalise_rows(const T* __restrict__ x, T* __restrict__ y, ptrdiff_t step,
                                               int left, const float (&mean)[V], const float (&scale)[V],
                                               const float (&beta)[V], bool relu) {
  Vec<T, V> rows[kRows];
  load_rows<T, V, kRows, kFull>(x, step, left, rows);
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    if (kFull || u < left) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float pre = batchnorm_pre(batchnorm_centre(rows[u][v], mean[v]), scale[v], beta[v]);
        rows[u].set(v, batchnorm_activate(pre, relu));
      }
      rows[u].store(y + u * step);
    }
  }
}

template <class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_normalise_kernel(
    const T* __restrict__ x,           // [M,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const float* __restrict__ mean,    // [C]
    const float* __restrict__ spread,  // [C] rstd or variance
    T* __restrict__ y,                 // [M,C]
    const __grid_constant__ BatchnormTile tile, float eps, bool is_variance, bool relu) {
  const BatchnormSlice s = batchnorm_slice<V>(tile, gridDim.x - 1 - blockIdx.x);
  if (s.count == 0) return;
  float mean_c[V], scale[V], beta_c[V], spread_c[V];
  load_channels(mean + s.channel, mean_c);
  load_channels(gamma + s.channel, scale);
  load_channels(beta + s.channel, beta_c);
  load_channels(spread + s.channel, spread_c);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    scale[v] = batchnorm_scale(scale[v], is_variance ? batchnorm_rstd(spread_c[v], eps) : spread_c[v]);
  }
  size_t at = s.first + static_cast<size_t>(s.count - 1) * s.step;
  const ptrdiff_t step = -static_cast<ptrdiff_t>(s.step);
  int left = s.count;
  for (; left >= kRows; left -= kRows) {
    normalise_rows<T, V, true>(x + at, y + at, step, left, mean_c, scale, beta_c, relu);
    at -= kRows * s.step;
  }
  if (left > 0) normalise_rows<T, V, false>(x + at, y + at, step, left, mean_c, scale, beta_c, relu);
}

template <class T, int V>
void launch(const BatchnormProblem& p, const Device& device, const void* x, const float* gamma,
            const float* beta, const float* mean, const float* spread, bool is_variance, void* y,
            Stream stream) {
  const BatchnormTile tile =
      make_batchnorm_tile<V>(p, kBlocksPerMultiprocessor * std::max(1, device.multiprocessors), kRows);
  batchnorm_normalise_kernel<T, V><<<tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(x), gamma, beta, mean, spread, static_cast<T*>(y), tile, p.eps, is_variance,
      p.relu);
  check_launch("batchnorm_normalise_kernel");
}

Support supports(const BatchnormProblem&, const Device&) { return Support::yes(); }

}  // namespace

void launch_batchnorm_normalise(const BatchnormProblem& p, const Device& device, const void* x,
                                const float* gamma, const float* beta, const float* mean, const float* spread,
                                bool is_variance, void* y, Stream stream) {
  const bool bf = p.dtype == DType::kBF16;
  const bool vectors = p.c % (bf ? kVec16<bf16> : kVec16<float>) == 0;
  const auto run = bf ? (vectors ? launch<bf16, kVec16<bf16>> : launch<bf16, 1>)
                      : (vectors ? launch<float, kVec16<float>> : launch<float, 1>);
  run(p, device, x, gamma, beta, mean, spread, is_variance, y, stream);
}

extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      using Args = BatchnormFwdApply::Args;
      return make_plan<Args>(0, [p, device](const Args& a, void*, Stream stream) {
        launch_batchnorm_normalise(p, device, a.x, static_cast<const float*>(a.gamma),
                                   static_cast<const float*>(a.beta), static_cast<const float*>(a.mean),
                                   static_cast<const float*>(a.rstd), false, a.y, stream);
      });
    }};

extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      using Args = BatchnormFwdInfer::Args;
      return make_plan<Args>(0, [p, device](const Args& a, void*, Stream stream) {
        launch_batchnorm_normalise(p, device, a.x, static_cast<const float*>(a.gamma),
                                   static_cast<const float*>(a.beta),
                                   static_cast<const float*>(a.running_mean),
                                   static_cast<const float*>(a.running_var), true, a.y, stream);
      });
    }};

}  // namespace kiln
