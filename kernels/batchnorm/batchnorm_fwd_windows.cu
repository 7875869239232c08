// batchnorm forward with a pool behind it: y[n,p,q,c] = max over r, s of act((x[n,2p+r,2q+s,c] - mean[c]) *
// gamma[c]
// * rstd[c] + beta[c]) as dtype stores it, arg[n,p,q,c] = r*2+s of the first maximum (of several NaN the
// last).
//
// A thread owns 16 bytes of channels of windows a grid apart (batchnorm_windows.cuh), the last first; it
// reads the four pixels of a window and writes one pixel of y and V positions: two bytes in bf16, one in
// fp32. The unpooled tensor is written nowhere. Given the variance, every block takes the root of it; the
// blocks of the last chunk also write rstd and the running statistics. No shared memory. C must be a multiple
// of 16 bytes, tensors 16-byte aligned (make_plan checks). Deterministic. Mirrors
// cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_epilogue.cuh"
#include "kernels/batchnorm/batchnorm_windows.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kBlocksPerMultiprocessor = 4;  // all are resident

// The larger of V channels' four values as T stores them, and which it was.
template <class T, int V>
__device__ __forceinline__ unsigned take_maxima(const Vec<T, V> (&pixels)[4], const Channels<V>& ch,
                                                const BatchnormClamp& clamp, Vec<T, V>& y) {
  unsigned bits = 0;
#pragma unroll
  for (int v = 0; v < V; v += 2) {  // bf16 rounds and clamps in pairs
    Vec<T, 2> values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float u[2] = {ch.pre(v, batchnorm_centre(pixels[k][v], ch.mean[v])),
                          ch.pre(v + 1, batchnorm_centre(pixels[k][v + 1], ch.mean[v + 1]))};
      set_clamped(values[k], u, clamp);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      BatchnormMaximum best = {values[0][j], 0};
#pragma unroll
      for (int k = 1; k < 4; ++k) best.take(values[k][j], k);
      y.set(v + j, best.value);
      bits |= static_cast<unsigned>(best.position) << 2 * (v + j);
    }
  }
  return bits;
}

template <class T, int V>
__global__ __launch_bounds__(kTileThreads, kBlocksPerMultiprocessor) void batchnorm_fwd_windows_kernel(
    const T* __restrict__ x,           // [N,H,W,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const float* __restrict__ mean,    // [C]
    const float* __restrict__ spread,  // [C] rstd or variance
    T* __restrict__ y,                 // [N,H/2,W/2,C]
    unsigned char* __restrict__ arg,   // [N,H/2,W/2,C/4] or null
    const __grid_constant__ BatchnormCells cells, const __grid_constant__ BatchnormClamp clamp,
    const __grid_constant__ BatchnormStatistics statistics, float eps, bool is_variance) {
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const auto s = BatchnormCellSlice::of<V>(cells.tile, block);
  store_statistics<V>(statistics, mean, spread, cells.tile, block, eps);
  if (s.count == 0) return;
  Channels<V> ch;
  load_given<V>(ch, gamma, beta, mean, spread, s.channel, eps, is_variance);
  for (int index = s.first + (s.count - 1) * s.step; index >= 0; index -= s.step) {
    const unsigned channels = static_cast<unsigned>(cells.tile.channels);
    const unsigned from = BatchnormCell::of(cells, index).pixel(cells) * channels + s.channel;
    Vec<T, V> pixels[4], best;
#pragma unroll
    for (int k = 0; k < 4; ++k) load_once(x + (from + batchnorm_pixel_offset(cells, k)), pixels[k]);
    const unsigned bits = take_maxima(pixels, ch, clamp, best);
    const unsigned to = static_cast<unsigned>(index) * channels + s.channel;
    best.store(y + to);
    if (arg) store_positions<V>(bits, arg, to);
  }
}

template <class T>
void launch(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a, Stream stream) {
  constexpr int V = kVec16<T>;
  const BatchnormCells cells =
      make_batchnorm_cells<V>(p, kBlocksPerMultiprocessor * std::max(1, device.multiprocessors), false);
  const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
  batchnorm_fwd_windows_kernel<T, V><<<cells.tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), per_channel(a.gamma), per_channel(a.beta), per_channel(a.mean),
      per_channel(a.spread), static_cast<T*>(a.y), static_cast<unsigned char*>(a.arg), cells,
      batchnorm_clamp(p.act), batchnorm_statistics(p, a), p.eps, a.is_variance);
  check_launch("batchnorm_fwd_windows_kernel");
}

}  // namespace

void launch_batchnorm_windows(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a,
                              Stream stream) {
  (p.dtype == DType::kBF16 ? launch<bf16> : launch<float>)(p, device, a, stream);
}

}  // namespace kiln
