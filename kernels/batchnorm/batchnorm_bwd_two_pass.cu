// batchnorm bwd: with g[m,c] = dy[m,c] * act'(u[m,c]), or dy where the mask's bit is set, dbeta[c] = sum_m g,
// dgamma[c] = rstd[c] * sum_m g * d, d = x[m,c] - mean[c], dresidual = g, and
// dx[m,c] = gamma[c] * rstd[c] * (g - dbeta[c]/M - d * rstd[c] * dgamma[c]/M).
//
// Three launches. (1) partial: a thread (batchnorm_tile.cuh says which part it owns) sums g and g * d of its
// rows, Gate::kSumRows rows in flight; the threads of a channel add up in a tree through shared memory, V * 2
// KiB. (2) merge: kMergeRows threads a channel add the chunks in a fixed order. (3) dx and dresidual, walking
// backwards so that it starts with what is still in L2. Workspace: the sums, [chunks,2,C] fp32. Needs 16-byte
// aligned tensors. Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include <type_traits>

#include "kernels/batchnorm/batchnorm_bwd_sums.cuh"
#include "kernels/batchnorm/batchnorm_gate.cuh"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kSumBlocks = 2;  // blocks a multiprocessor: all are resident
constexpr int kGradientBlocks = 8;
constexpr int kGradientRows = 2;  // rows in flight, of x and of dy, in the last stage

template <class Gate, class T, int V>
__global__ __launch_bounds__(kTileThreads, kSumBlocks) void batchnorm_bwd_two_pass_partial_kernel(
    const T* __restrict__ dy,                // [M,C]
    const T* __restrict__ x,                 // [M,C]
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ saved_mean,    // [C]
    const float* __restrict__ saved_rstd,    // [C]
    const unsigned char* __restrict__ mask,  // [M,ceil(C/8)], null without
    float* __restrict__ partial,             // [chunks,2,C]: sum g, sum g * d
    const __grid_constant__ BatchnormTile tile, const __grid_constant__ BatchnormActivation activation) {
  constexpr int kRows = Gate::kSumRows;
  const BatchnormSlice s = batchnorm_slice<V>(tile, blockIdx.x);
  float sum_g[V], sum_gd[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum_g[v] = sum_gd[v] = 0.0f;
  if (s.count > 0) {
    Channels<V> ch;
    ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
    MaskWalk bits = MaskWalk::begin<Gate, V>(mask, tile, s, 0, 1);
    const ptrdiff_t step = static_cast<ptrdiff_t>(s.step);
    size_t at = s.first;
    const auto rows_at = [&](auto full, int left) {
      constexpr bool kFull = decltype(full)::value;
      Vec<T, V> dy_rows[kRows], x_rows[kRows];
      unsigned row_bits[kRows] = {};
      load_rows<T, V, kRows, kFull>(dy + at, step, left, dy_rows);
      load_rows<T, V, kRows, kFull>(x + at, step, left, x_rows);
      load_bits<Gate, kRows, kFull>(bits, left, row_bits);
      sum_rows<Gate, kRows, kFull>(dy_rows, x_rows, row_bits, left, ch, activation, sum_g, sum_gd);
    };
    int left = s.count;
    for (; left >= kRows; left -= kRows) {
      rows_at(std::true_type{}, left);
      at += kRows * s.step;
      bits.advance(kRows);
    }
    if (left > 0) rows_at(std::false_type{}, left);
  }
  add_block(sum_g, sum_gd, tile, s.row);
  if (s.row == 0 && s.count > 0) {
    float* out = partial + static_cast<size_t>(s.chunk) * 2 * tile.channels + s.channel;
    store_channels(sum_g, out);
    store_channels(sum_gd, out + tile.channels);
  }
}

template <class Gate, class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_bwd_two_pass_gradient_kernel(
    const T* __restrict__ dy,                // [M,C]
    const T* __restrict__ x,                 // [M,C]
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ saved_mean,    // [C]
    const float* __restrict__ saved_rstd,    // [C]
    const unsigned char* __restrict__ mask,  // [M,ceil(C/8)], null without
    const float* __restrict__ dgamma,        // [C]
    const float* __restrict__ dbeta,         // [C]
    T* __restrict__ dx,                      // [M,C]
    T* __restrict__ dresidual,               // [M,C], null without a mask
    const __grid_constant__ BatchnormTile tile, const __grid_constant__ BatchnormActivation activation) {
  const BatchnormSlice s = batchnorm_slice<V>(tile, gridDim.x - 1 - blockIdx.x);
  if (s.count == 0) return;
  Channels<V> ch;
  ch.load(gamma, beta, saved_mean, saved_rstd, s.channel);
  float mean_g[V], slope[V], rstd[V];
  load_channels(dbeta + s.channel, mean_g);
  load_channels(dgamma + s.channel, slope);
  load_channels(saved_rstd + s.channel, rstd);
  const float inverse = 1.0f / static_cast<float>(tile.rows);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    mean_g[v] *= inverse;
    slope[v] *= rstd[v] * inverse;
  }
  MaskWalk bits = MaskWalk::begin<Gate, V>(mask, tile, s, s.count - 1, -1);
  size_t at = s.first + static_cast<size_t>(s.count - 1) * s.step;
  const ptrdiff_t step = -static_cast<ptrdiff_t>(s.step);
  const auto rows_at = [&](auto full, int left) {
    constexpr bool kFull = decltype(full)::value;
    Vec<T, V> dy_rows[kGradientRows], x_rows[kGradientRows];
    unsigned row_bits[kGradientRows] = {};
    load_rows<T, V, kGradientRows, kFull>(dy + at, step, left, dy_rows);
    load_rows<T, V, kGradientRows, kFull>(x + at, step, left, x_rows);
    load_bits<Gate, kGradientRows, kFull>(bits, left, row_bits);
    gradient_rows<Gate, kGradientRows, kFull, Store::kPlain>(dy_rows, x_rows, row_bits, dx + at,
                                                             Gate::kMasked ? dresidual + at : nullptr, step,
                                                             left, ch, mean_g, slope, activation);
  };
  int left = s.count;
  for (; left >= kGradientRows; left -= kGradientRows) {
    rows_at(std::true_type{}, left);
    at -= kGradientRows * s.step;
    bits.advance(kGradientRows);
  }
  if (left > 0) rows_at(std::false_type{}, left);
}

Support supports(const BatchnormProblem& p, const Device&) {
  return Support::require(!p.pool, "there must be no pool");
}

template <class Gate, class T, int V>
Plan<BatchnormBwd::Args> plan(const BatchnormProblem& p, const Device& device) {
  const int multiprocessors = std::max(1, device.multiprocessors);
  const BatchnormTile sums = make_batchnorm_tile<V>(p, kSumBlocks * multiprocessors, Gate::kSumRows);
  const BatchnormTile tile = make_batchnorm_tile<V>(p, kGradientBlocks * multiprocessors, kGradientRows);
  const size_t bytes = 2 * sizeof(float) * static_cast<size_t>(sums.chunks) * sums.channels;
  using Args = BatchnormBwd::Args;
  return make_plan<Args>(bytes, [p, sums, tile](const Args& a, void* workspace, Stream stream) {
    const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
    const T *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
    const auto* mask = static_cast<const unsigned char*>(a.mask);
    float *dgamma = static_cast<float*>(a.dgamma), *dbeta = static_cast<float*>(a.dbeta);
    float* partial = static_cast<float*>(workspace);
    const BatchnormActivation activation = batchnorm_activation(p);
    batchnorm_bwd_two_pass_partial_kernel<Gate, T, V>
        <<<sums.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
            dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
            per_channel(a.saved_rstd), mask, partial, sums, activation);
    check_launch("batchnorm_bwd_two_pass_partial_kernel");
    launch_merge(partial, per_channel(a.saved_rstd), dgamma, dbeta, sums, stream);
    batchnorm_bwd_two_pass_gradient_kernel<Gate, T, V>
        <<<tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
            dy, x, per_channel(a.gamma), per_channel(a.beta), per_channel(a.saved_mean),
            per_channel(a.saved_rstd), mask, dgamma, dbeta, static_cast<T*>(a.dx),
            static_cast<T*>(a.dresidual), tile, activation);
    check_launch("batchnorm_bwd_two_pass_gradient_kernel");
  });
}

template <class T, int V>
Plan<BatchnormBwd::Args> plan_gate(const BatchnormProblem& p, const Device& device) {
  if (p.masked()) return plan<ByMask, T, V>(p, device);
  if (batchnorm_is_smooth(p.act)) return plan<BySlope, T, V>(p, device);
  return plan<ByClamp, T, V>(p, device);
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_two_pass = {
    .name = "two_pass",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      const bool bf = p.dtype == DType::kBF16;
      const bool vectors = p.c % (bf ? kVec16<bf16> : kVec16<float>) == 0;
      const auto make = bf ? (vectors ? plan_gate<bf16, kVec16<bf16>> : plan_gate<bf16, 1>)
                           : (vectors ? plan_gate<float, kVec16<float>> : plan_gate<float, 1>);
      return make(p, device);
    }};

}  // namespace kiln
