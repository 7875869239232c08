// softmax_xent fwd and fwd_bwd for few classes: formulas in softmax_xent.h.
//
// A thread owns a row n, a block kRows rows, or all of them where they are few, which saves the sum over the
// blocks. The block's rows are one contiguous piece of x: it is read and dx is written coalesced, through
// shared memory with an odd row length (rows * (K | 1) floats, at most kSharedBytes), so that the threads of
// a warp hit different banks. Losses are summed by block, then by the last block (softmax_xent_finish).
// Workspace: [blocks,2] fp32. At most kMostClasses classes. Deterministic. Mirrors
// cpu_reference/softmax_xent_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {
namespace {

constexpr int kRows = 64;
constexpr int kMostRows = 1024;  // of a single block
constexpr int kMostClasses = 32;
constexpr int kSharedBytes =
    46 << 10;  // below the 48 KiB of an ordinary launch, which softmax_xent_finish shares
static_assert(kRows * (kMostClasses + 1) * 4 <= kSharedBytes, "a block's rows fit shared memory");

// The row's loss; its logits become their gradient where kGradient.
template <bool kGradient>
__device__ __forceinline__ float one_row(float* row, int label, int classes, const SoftmaxXentScale& scale,
                                         float& correct) {
  int best = 0;
  float most = row[0];
  for (int k = 1; k < classes; ++k) {
    if (row[k] > most) {
      most = row[k];
      best = k;
    }
  }
  const bool valid = static_cast<unsigned>(label) < static_cast<unsigned>(classes);
  const float z_label = valid ? row[label] - most : __int_as_float(0x7fc00000);
  float sum = 0.0f, sum_z = 0.0f;
  for (int k = 0; k < classes; ++k) {
    const float z = row[k] - most;
    const float e = expf(z);
    sum += e;
    sum_z += z;
    if (kGradient) row[k] = e;
  }
  const float loss = softmax_xent_loss(sum, sum_z, z_label, classes, scale);
  correct = best == label && !isnan(loss) ? 1.0f : 0.0f;
  if (kGradient) {
    const float inverse = valid ? 1.0f / sum : z_label;  // a wrong label makes the whole row NaN
    for (int k = 0; k < classes; ++k) row[k] = softmax_xent_gradient(row[k] * inverse, k == label, scale);
  }
  return loss;
}

template <class T, bool kGradient>
__global__ __launch_bounds__(kMostRows) void softmax_xent_thread_row_kernel(
    const T* __restrict__ x,         // [N,K]
    const int* __restrict__ labels,  // [N]
    float* __restrict__ row_loss,    // [N]
    float* __restrict__ summary,     // [2]
    T* __restrict__ dx,              // [N,K], unused without kGradient
    float* __restrict__ partial,     // [blocks,2]
    unsigned* __restrict__ done,     // [1]
    int rows, int classes, const __grid_constant__ SoftmaxXentScale scale) {
  extern __shared__ float tile[];  // [blockDim][stride]
  const int stride = classes | 1, threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * threads, here = min(threads, rows - first);
  const size_t base = static_cast<size_t>(first) * classes;
  for (int i = t; i < here * classes; i += threads) {
    tile[i / classes * stride + i % classes] = to_float(x[base + i]);
  }
  __syncthreads();
  float loss = 0.0f, correct = 0.0f;
  if (t < here) {
    loss = one_row<kGradient>(tile + t * stride, labels[first + t], classes, scale, correct);
    row_loss[first + t] = loss;
  }
  if (kGradient) {
    __syncthreads();
    for (int i = t; i < here * classes; i += threads) {
      dx[base + i] = from_float<T>(tile[i / classes * stride + i % classes]);
    }
  }
  softmax_xent_finish(loss, correct, threads / 32, scale, partial, done, summary);
}

Support supports(const SoftmaxXentProblem& p, const Device&) {
  return Support::require(p.c <= kMostClasses, "thread_row takes at most 32 classes");
}

template <class T, bool kGradient, class Args>
Plan<Args> plan(const SoftmaxXentProblem& p) {
  const int row_bytes = (p.c | 1) * static_cast<int>(sizeof(float));
  const int all = p.n <= kMostRows ? ceil_div(p.n, 32) * 32 : 0;
  const int threads = all > 0 && all * row_bytes <= kSharedBytes ? all : kRows;
  const int blocks = static_cast<int>(grid_for(p.n, threads));
  return softmax_xent_plan<Args>(blocks, [=](const Args& a, float* partial, unsigned* done, Stream stream) {
    T* dx = nullptr;
    if constexpr (kGradient) dx = static_cast<T*>(a.dx);
    softmax_xent_thread_row_kernel<T, kGradient>
        <<<blocks, threads, threads * row_bytes, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const int*>(a.labels), static_cast<float*>(a.row_loss),
            static_cast<float*>(a.summary), dx, partial, done, p.n, p.c, softmax_xent_scale(p));
    check_launch("softmax_xent_thread_row_kernel");
  });
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_thread_row = {
    .name = "thread_row",
    .supports = supports,
    .plan = [](const SoftmaxXentProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      using Args = SoftmaxXentFwd::Args;
      return p.dtype == DType::kBF16 ? plan<bf16, false, Args>(p) : plan<float, false, Args>(p);
    }};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_thread_row = {
    .name = "thread_row",
    .supports = supports,
    .plan = [](const SoftmaxXentProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      using Args = SoftmaxXentFwdBwd::Args;
      return p.dtype == DType::kBF16 ? plan<bf16, true, Args>(p) : plan<float, true, Args>(p);
    }};

}  // namespace kiln
