// conv2d fwd: y[n,p,q,k] = bias[k] + sum_{r,s,c} x[n, p*sh+r-ph, q*sw+s-pw, c] * w[k,r,s,c], with any
// epilogue.
//
// The first rung: a thread owns one element of y and loops with the grid's stride; consecutive threads own
// consecutive k, so that a warp reads one x for all its lanes and the filter rows stay in L1 while c
// advances. With max2 these go to the workspace, and a second launch pools them; statistics are one too. Sums
// in double. Any problem, deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/activation/activation_kind.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/conv2d/conv2d_shape.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Operands {
  const T* x;          // [N,H,W,c_stride]
  const T* w;          // [K,R,S,C]
  const float* scale;  // [K] or null
  const float* bias;   // [K] or null
  const T* residual;   // [N,P,Q,K] or null
};

// Element (n, op, oq, k) before any pooling.
template <class T>
__device__ T value_at(const Operands<T>& in, const Conv2dShape& p, ActKind act, int n, int op, int oq,
                      int k) {
  const int top = op * p.stride_h - p.pad_h, left = oq * p.stride_w - p.pad_w;
  double sum = 0.0;
  for (int r = 0; r < p.r; ++r) {
    if (top + r < 0 || top + r >= p.h) continue;
    for (int s = 0; s < p.s; ++s) {
      if (left + s < 0 || left + s >= p.w) continue;
      const T* pixel = in.x + ((static_cast<long long>(n) * p.h + top + r) * p.w + left + s) * p.c_stride;
      const T* tap = in.w + ((static_cast<long long>(k) * p.r + r) * p.s + s) * p.c;
      for (int c = 0; c < p.c; ++c) sum += static_cast<double>(to_float(pixel[c])) * to_float(tap[c]);
    }
  }
  if (in.scale) sum *= in.scale[k];
  if (in.bias) sum += in.bias[k];
  if (in.residual) {
    sum += to_float(in.residual[((static_cast<long long>(n) * p.p + op) * p.q + oq) * p.k + k]);
  }
  return from_float<T>(static_cast<float>(activate(sum, act)));
}

template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_fwd_naive_kernel(const __grid_constant__ Operands<T> in,
                                                                    T* __restrict__ y,  // [N,P,Q,K]
                                                                    const __grid_constant__ Conv2dShape p,
                                                                    ActKind act) {
  const long long elements = 1LL * p.n * p.p * p.q * p.k;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < elements;
       i += 1LL * gridDim.x * kThreads) {
    const int k = static_cast<int>(i % p.k), pixel = static_cast<int>(i / p.k);
    y[i] = value_at(in, p, act, pixel / (p.p * p.q), pixel / p.q % p.p, pixel % p.q, k);
  }
}

// Behind a forward with max2: a thread owns the four channels whose positions share a byte.
template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_fwd_naive_pool_kernel(
    const T* __restrict__ unpooled,  // [N,P,Q,K]
    T* __restrict__ y,               // [N,P/2,Q/2,K]
    uint8_t* __restrict__ arg,       // [N,P/2,Q/2,ceil(K/4)] or null
    const __grid_constant__ Conv2dShape p) {
  const int rows = p.p / 2, columns = p.q / 2, bytes = (p.k + 3) / 4;
  const long long items = 1LL * p.n * rows * columns * bytes;
  for (long long i = blockIdx.x * 1LL * kThreads + threadIdx.x; i < items; i += 1LL * gridDim.x * kThreads) {
    const int pixel = static_cast<int>(i / bytes), first = static_cast<int>(i % bytes) * 4;
    const int n = pixel / (rows * columns), top = pixel / columns % rows * 2, left = pixel % columns * 2;
    const T* window = unpooled + ((1LL * n * p.p + top) * p.q + left) * p.k;
    int positions = 0;
    for (int k = first; k < first + 4 && k < p.k; ++k) {
      T best = window[k];
      int position = 0;
      for (int at = 1; at < 4; ++at) {
        const T v = window[(at / 2 * p.q + at % 2) * static_cast<long long>(p.k) + k];
        if (to_float(v) > to_float(best) || isnan(to_float(v))) {
          best = v;
          position = at;
        }
      }
      y[1LL * pixel * p.k + k] = best;
      positions |= position << (2 * (k - first));
    }
    if (arg) arg[i] = static_cast<uint8_t>(positions);
  }
}

// Statistics of y, two passes: a block owns a channel, a thread every kThreads-th pixel.
template <class T>
__global__ __launch_bounds__(kThreads) void conv2d_fwd_naive_stats_kernel(
    const T* __restrict__ y,   // [pixels,K]
    float* __restrict__ mean,  // [K]
    float* __restrict__ var,   // [K]
    long long pixels, int K) {
  __shared__ double sums[kThreads];
  const auto sum_of = [&](double middle, bool squared) {
    double sum = 0.0;
    for (long long i = threadIdx.x; i < pixels; i += kThreads) {
      const double d = static_cast<double>(to_float(y[i * K + blockIdx.x])) - middle;
      sum += squared ? d * d : d;
    }
    __syncthreads();  // the last sums have been read
    sums[threadIdx.x] = sum;
    for (int step = kThreads / 2; step > 0; step /= 2) {
      __syncthreads();  // twice as many sums are written
      if (static_cast<int>(threadIdx.x) < step) sums[threadIdx.x] += sums[threadIdx.x + step];
    }
    __syncthreads();
    return sums[0] / static_cast<double>(pixels);
  };
  const double middle = sum_of(0.0, false), square = sum_of(middle, true);
  if (threadIdx.x == 0)
    mean[blockIdx.x] = static_cast<float>(middle), var[blockIdx.x] = static_cast<float>(square);
}

template <class T>
Plan<Conv2dFwd::Args> plan(const Conv2dProblem& p) {
  const size_t unpooled_bytes = p.pool ? sizeof(T) * p.n * p.p() * p.q() * p.k : 0;
  return make_plan<Conv2dFwd::Args>(unpooled_bytes, [p](const Conv2dFwd::Args& a, void* workspace,
                                                        Stream stream) {
    const Operands<T> in = {static_cast<const T*>(a.x), static_cast<const T*>(a.w),
                            p.scale ? static_cast<const float*>(a.scale) : nullptr,
                            p.bias ? static_cast<const float*>(a.bias) : nullptr,
                            p.residual ? static_cast<const T*>(a.residual) : nullptr};
    T* values = static_cast<T*>(p.pool ? workspace : a.y);
    conv2d_fwd_naive_kernel<T>
        <<<grid_for(1LL * p.n * p.p() * p.q() * p.k, kThreads, 1 << 20), kThreads, 0, cuda_stream(stream)>>>(
            in, values, Conv2dShape(p), p.act);
    check_launch("conv2d_fwd_naive_kernel");
    if (p.pool) {
      const long long items = 1LL * p.n * p.y_h() * p.y_w() * ceil_div(p.k, 4);
      conv2d_fwd_naive_pool_kernel<T>
          <<<grid_for(items, kThreads, 1 << 20), kThreads, 0, cuda_stream(stream)>>>(
              values, static_cast<T*>(a.y), p.pool_arg ? static_cast<uint8_t*>(a.arg) : nullptr,
              Conv2dShape(p));
      check_launch("conv2d_fwd_naive_pool_kernel");
    }
    if (!p.stats) return;
    conv2d_fwd_naive_stats_kernel<T><<<p.k, kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.y), static_cast<float*>(a.mean), static_cast<float*>(a.var),
        1LL * p.n * p.p() * p.q(), p.k);
    check_launch("conv2d_fwd_naive_stats_kernel");
  });
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_naive = {
    .name = "naive",
    .supports = conv2d_supports_fp32_bf16,
    .plan = [](const Conv2dProblem& p, const Device&, std::string_view config) {
      require_no_config(config);
      return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
    }};

}  // namespace kiln
