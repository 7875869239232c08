// softmax_xent fwd and fwd_bwd, the first rung: formulas in softmax_xent.h.
//
// A thread owns a row n and sums over its classes in double; one more block sums losses and correct rows in
// double. Workspace: loss and correct of each row, [N,2] doubles. Shared memory: 16 doubles. Any shape and
// alignment, deterministic. Mirrors cpu_reference/softmax_xent_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/softmax_xent/softmax_xent.h"

namespace kiln {
namespace {

constexpr int kThreads = 128;  // and 4 blocks a multiprocessor, which leaves the double exp enough registers

template <class T>
__global__ __launch_bounds__(kThreads,
                             4) void softmax_xent_naive_kernel(const T* __restrict__ x,         // [N,K]
                                                               const int* __restrict__ labels,  // [N]
                                                               float* __restrict__ row_loss,    // [N]
                                                               T* __restrict__ dx,            // [N,K] or null
                                                               double* __restrict__ rows_of,  // [N,2]
                                                               int rows, int classes, double smoothing) {
  for (long long n = blockIdx.x * kThreads + threadIdx.x; n < rows; n += gridDim.x * kThreads) {
    const T* row = x + n * classes;
    const int label = labels[n];
    const bool valid = label >= 0 && label < classes;
    int best = 0;
    for (int k = 1; k < classes; ++k) {
      if (to_float(row[k]) > to_float(row[best])) best = k;
    }
    const double most = to_float(row[best]);
    double sum = 0, shifted = 0;
    for (int k = 0; k < classes; ++k) {
      sum += exp(to_float(row[k]) - most);
      shifted += to_float(row[k]) - most;
    }
    const double nan = __longlong_as_double(0x7ff8000000000000ll);
    double loss = nan;
    if (valid) {
      loss = log(sum) - (1.0 - smoothing) * (to_float(row[label]) - most);
      if (smoothing > 0) loss -= smoothing * shifted / classes;
    }
    row_loss[n] = static_cast<float>(loss);
    rows_of[2 * n] = loss;
    rows_of[2 * n + 1] = best == label && !isnan(loss) ? 1.0 : 0.0;
    if (dx == nullptr) continue;
    const double off_target = smoothing / classes, inverse = valid ? 1.0 / sum : nan;
    for (int k = 0; k < classes; ++k) {
      const double target = off_target + (k == label ? 1.0 - smoothing : 0.0);
      const double softmax = exp(to_float(row[k]) - most) * inverse;
      dx[n * classes + k] = from_float<T>(static_cast<float>((softmax - target) / rows));
    }
  }
}

__global__ __launch_bounds__(kThreads) void softmax_xent_summary_naive_kernel(
    const double* __restrict__ rows_of,  // [N,2]
    float* __restrict__ summary,         // [2]
    int rows) {
  __shared__ double s_loss[kThreads / 32], s_correct[kThreads / 32];
  double loss = 0, correct = 0;
  for (long long n = threadIdx.x; n < rows; n += kThreads) {
    loss += rows_of[2 * n];
    correct += rows_of[2 * n + 1];
  }
  loss = block_sum<kThreads>(loss, s_loss);
  correct = block_sum<kThreads>(correct, s_correct);
  if (threadIdx.x == 0) {
    summary[0] = static_cast<float>(loss / rows);
    summary[1] = static_cast<float>(correct);
  }
}

template <class T, class Args>
Plan<Args> plan(const SoftmaxXentProblem& p) {
  const size_t bytes = 2 * sizeof(double) * static_cast<size_t>(p.n);
  return make_plan<Args>(bytes, [p](const Args& a, void* workspace, Stream stream) {
    T* dx = nullptr;
    if constexpr (requires { a.dx; }) dx = static_cast<T*>(a.dx);
    double* rows_of = static_cast<double*>(workspace);
    softmax_xent_naive_kernel<T><<<grid_for(p.n, kThreads, 1 << 16), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const int*>(a.labels), static_cast<float*>(a.row_loss), dx,
        rows_of, p.n, p.c, static_cast<double>(p.smoothing));
    check_launch("softmax_xent_naive_kernel");
    softmax_xent_summary_naive_kernel<<<1, kThreads, 0, cuda_stream(stream)>>>(
        rows_of, static_cast<float*>(a.summary), p.n);
    check_launch("softmax_xent_summary_naive_kernel");
  });
}

template <class Pass>
Plan<typename Pass::Args> plan_any(const SoftmaxXentProblem& p, const Device&, std::string_view config) {
  require_no_config(config);
  using Args = typename Pass::Args;
  return p.dtype == DType::kBF16 ? plan<bf16, Args>(p) : plan<float, Args>(p);
}

Support supports(const SoftmaxXentProblem&, const Device&) { return Support::yes(); }

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_naive = {
    .name = "naive", .supports = supports, .plan = plan_any<SoftmaxXentFwd>};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_naive = {
    .name = "naive", .supports = supports, .plan = plan_any<SoftmaxXentFwdBwd>};

}  // namespace kiln
