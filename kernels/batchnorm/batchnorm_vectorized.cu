// batchnorm fwd_apply, fwd_infer and fwd_given: y[m,c] = act((x[m,c] - mean[c]) * gamma[c] * rstd[c] +
// beta[c] + residual[m,c]), also the last stage of fwd_train. Training wants the mask of act too; with pool,
// batchnorm_fwd_windows.cu does it. In fwd_given every block takes the root of the variance, and those of the
// last chunk write rstd and the running statistics.
//
// batchnorm_tile.cuh says what a block and a thread own; a thread moves 16 bytes an access, Epilogue::kRows
// rows in flight. Blocks and rows run from the last to the first: what the kernel before wrote or read last
// is still in L2. A byte of the mask is one thread's 8 bf16 channels or two neighbours' 4 fp32 ones, which
// meet by a shuffle. Channel counts that fill no vector go one channel a thread, those that fill no byte get
// their mask from batchnorm_mask.h. No shared memory. Needs 16-byte aligned tensors (make_plan checks).
// Deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include <type_traits>

#include "kernels/batchnorm/batchnorm_epilogue.cuh"
#include "kernels/batchnorm/batchnorm_mask.h"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kBlocksPerMultiprocessor = 8;

template <class Epilogue, class T, int V>
__global__ __launch_bounds__(kTileThreads) void batchnorm_normalise_kernel(
    const T* __restrict__ x,           // [M,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const float* __restrict__ mean,    // [C]
    const float* __restrict__ spread,  // [C] rstd or variance
    const T* __restrict__ residual,    // [M,C], null where the epilogue has none
    T* __restrict__ y,                 // [M,C]
    unsigned char* __restrict__ mask,  // [M,C/8] or null
    const __grid_constant__ BatchnormTile tile, const __grid_constant__ BatchnormActivation activation,
    const __grid_constant__ BatchnormStatistics statistics, float eps, bool is_variance) {
  constexpr int kRows = Epilogue::kRows;
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const BatchnormSlice s = batchnorm_slice<V>(tile, block);
  store_statistics<V>(statistics, mean, spread, tile, block, eps);
  if (s.count == 0) return;
  Channels<V> ch;
  load_given<V>(ch, gamma, beta, mean, spread, s.channel, eps, is_variance);
  size_t at = s.first + static_cast<size_t>(s.count - 1) * s.step;
  const ptrdiff_t step = -static_cast<ptrdiff_t>(s.step);
  const auto rows_at = [&](auto full, int left) {
    constexpr bool kFull = decltype(full)::value;
    Vec<T, V> rows[kRows];
    load_rows<T, V, kRows, kFull>(x + at, step, left, rows);
    normalise_rows<Epilogue, kRows, kFull, Store::kPlain>(rows, residual, y, mask, at, step, left, ch,
                                                          activation);
  };
  int left = s.count;
  for (; left >= kRows; left -= kRows) {
    rows_at(std::true_type{}, left);
    at -= kRows * s.step;
  }
  if (left > 0) rows_at(std::false_type{}, left);
}

template <class Epilogue, class T, int V>
void launch(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a, Stream stream) {
  const BatchnormTile tile = make_batchnorm_tile<V>(
      p, kBlocksPerMultiprocessor * std::max(1, device.multiprocessors), Epilogue::kRows);
  const bool whole_bytes = V > 1 && p.c % 8 == 0;
  const auto per_channel = [](const void* q) { return static_cast<const float*>(q); };
  batchnorm_normalise_kernel<Epilogue, T, V><<<tile.blocks(), kTileThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), per_channel(a.gamma), per_channel(a.beta), per_channel(a.mean),
      per_channel(a.spread), static_cast<const T*>(a.residual), static_cast<T*>(a.y),
      whole_bytes ? static_cast<unsigned char*>(a.mask) : nullptr, tile, batchnorm_activation(p),
      batchnorm_statistics(p, a), p.eps, a.is_variance);
  check_launch("batchnorm_normalise_kernel");
  if (a.mask && !whole_bytes) launch_batchnorm_mask(p, a.y, a.mask, stream);
}

template <class T, int V>
void launch_epilogue(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a,
                     Stream stream) {
  if (p.residual) return launch<ResidualClamped, T, V>(p, device, a, stream);
  if (batchnorm_is_smooth(p.act)) return launch<Smooth, T, V>(p, device, a, stream);
  launch<Clamped, T, V>(p, device, a, stream);
}

Support supports(const BatchnormProblem& p, const Device&) { return batchnorm_normalise_supports(p); }

}  // namespace

void launch_batchnorm_normalise(const BatchnormProblem& p, const Device& device, const BatchnormNormalise& a,
                                Stream stream) {
  if (p.pool) return launch_batchnorm_windows(p, device, a, stream);
  const bool bf = p.dtype == DType::kBF16;
  const bool vectors = p.c % (bf ? kVec16<bf16> : kVec16<float>) == 0;
  const auto run = bf ? (vectors ? launch_epilogue<bf16, kVec16<bf16>> : launch_epilogue<bf16, 1>)
                      : (vectors ? launch_epilogue<float, kVec16<float>> : launch_epilogue<float, 1>);
  run(p, device, a, stream);
}

extern const Impl<BatchnormFwdGiven> batchnorm_fwd_given_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      using Args = BatchnormFwdGiven::Args;
      return make_plan<Args>(0, [p, device](const Args& a, void*, Stream stream) {
        const BatchnormNormalise from = {.x = a.x,
                                         .gamma = a.gamma,
                                         .beta = a.beta,
                                         .mean = a.mean,
                                         .spread = a.var,
                                         .residual = a.residual,
                                         .y = a.y,
                                         .mask = a.mask,
                                         .arg = a.arg,
                                         .is_variance = true,
                                         .saved_rstd = a.saved_rstd,
                                         .running_mean = a.running_mean,
                                         .running_var = a.running_var};
        launch_batchnorm_normalise(p, device, from, stream);
      });
    }};

extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      using Args = BatchnormFwdApply::Args;
      return make_plan<Args>(0, [p, device](const Args& a, void*, Stream stream) {
        const BatchnormNormalise from = {.x = a.x,
                                         .gamma = a.gamma,
                                         .beta = a.beta,
                                         .mean = a.mean,
                                         .spread = a.rstd,
                                         .residual = a.residual,
                                         .y = a.y};
        launch_batchnorm_normalise(p, device, from, stream);
      });
    }};

extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_vectorized = {
    .name = "vectorized",
    .supports = supports,
    .plan = [](const BatchnormProblem& p, const Device& device, std::string_view config) {
      require_no_config(config);
      using Args = BatchnormFwdInfer::Args;
      return make_plan<Args>(0, [p, device](const Args& a, void*, Stream stream) {
        const BatchnormNormalise from = {.x = a.x,
                                         .gamma = a.gamma,
                                         .beta = a.beta,
                                         .mean = a.running_mean,
                                         .spread = a.running_var,
                                         .residual = a.residual,
                                         .y = a.y,
                                         .is_variance = true};
        launch_batchnorm_normalise(p, device, from, stream);
      });
    }};

}  // namespace kiln
