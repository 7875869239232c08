// batchnorm fwd_train, fwd_apply, fwd_infer, bwd, the first rung: formulas in batchnorm.h.
//
// A block owns one channel c: its threads take the rows m with the block's stride, one scalar access at a
// time, and sum in double; on which side of a kink a value lies is the shared fp32 arithmetic of
// batchnorm_math.h. A byte of the mask is eight blocks' work: batchnorm_mask.h makes it from y. Shared
// memory: 17 doubles. Any shape and alignment, deterministic. Mirrors cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_mask.h"
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/common/check.h"
#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 512;

__device__ __forceinline__ double load(float v) { return v; }
__device__ __forceinline__ double load(bf16 v) { return to_float(v); }

// block_sum, given to every thread.
__device__ double sum_for_all(double v) {
  __shared__ double scratch[kThreads / 32 + 1];
  v = block_sum<kThreads>(v, scratch);
  if (threadIdx.x == 0) scratch[kThreads / 32] = v;
  __syncthreads();
  v = scratch[kThreads / 32];
  __syncthreads();  // the next call may overwrite scratch
  return v;
}

struct Activation {
  BatchnormAct act;
  BatchnormClamp clamp;
};

// y[:,c]; mean32 and rstd32 are the fp32 roundings of mean and rstd.
template <class T>
__device__ void normalise_channel(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                                  long long rows, int channels, double mean, double rstd, float mean32,
                                  float rstd32, float gamma, float beta, Activation activation) {
  const float scale = batchnorm_scale(gamma, rstd32);
  for (long long m = threadIdx.x; m < rows; m += kThreads) {
    const long long i = m * channels + blockIdx.x;
    double value = gamma * (load(x[i]) - mean) * rstd + beta;
    float u = batchnorm_pre(batchnorm_centre(to_float(x[i]), mean32), scale, beta);
    if (residual) {
      value += load(residual[i]);
      u = batchnorm_join(u, to_float(residual[i]));
    }
    y[i] = from_float<T>(
        static_cast<float>(batchnorm_activate_exact(value, u, activation.act, activation.clamp)));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_fwd_train_naive_kernel(
    const T* __restrict__ x,           // [M,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const T* __restrict__ residual,    // [M,C] or null
    float* __restrict__ running_mean,  // [C]
    float* __restrict__ running_var,   // [C]
    T* __restrict__ y,                 // [M,C]
    float* __restrict__ saved_mean,    // [C]
    float* __restrict__ saved_rstd,    // [C]
    long long rows, int channels, float eps, float momentum, double unbiased, Activation activation) {
  const int c = blockIdx.x;
  double sum = 0, m2 = 0;
  for (long long m = threadIdx.x; m < rows; m += kThreads) sum += load(x[m * channels + c]);
  const double mean = sum_for_all(sum) / rows;
  for (long long m = threadIdx.x; m < rows; m += kThreads) {
    const double d = load(x[m * channels + c]) - mean;
    m2 += d * d;
  }
  const double var = sum_for_all(m2) / rows;
  const double rstd = 1.0 / sqrt(var + eps);
  if (threadIdx.x == 0) {
    saved_mean[c] = static_cast<float>(mean);
    saved_rstd[c] = static_cast<float>(rstd);
    running_mean[c] = static_cast<float>((1.0 - momentum) * running_mean[c] + momentum * mean);
    running_var[c] = static_cast<float>((1.0 - momentum) * running_var[c] + momentum * (var * unbiased));
  }
  normalise_channel(x, residual, y, rows, channels, mean, rstd, static_cast<float>(mean),
                    static_cast<float>(rstd), gamma[c], beta[c], activation);
}

template <class T>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_fwd_apply_naive_kernel(
    const T* __restrict__ x,           // [M,C]
    const float* __restrict__ gamma,   // [C]
    const float* __restrict__ beta,    // [C]
    const float* __restrict__ mean,    // [C]
    const float* __restrict__ spread,  // [C] rstd or variance
    const T* __restrict__ residual,    // [M,C] or null
    T* __restrict__ y,                 // [M,C]
    long long rows, int channels, float eps, bool is_variance, Activation activation) {
  const int c = blockIdx.x;
  const double rstd = is_variance ? 1.0 / sqrt(static_cast<double>(spread[c]) + eps) : spread[c];
  const float rstd32 = is_variance ? batchnorm_rstd(spread[c], eps) : spread[c];
  normalise_channel(x, residual, y, rows, channels, mean[c], rstd, mean[c], rstd32, gamma[c], beta[c],
                    activation);
}

template <class T>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_bwd_naive_kernel(
    const T* __restrict__ dy,                // [M,C]
    const T* __restrict__ x,                 // [M,C]
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ mean,          // [C]
    const float* __restrict__ rstd,          // [C]
    const unsigned char* __restrict__ mask,  // [M,ceil(C/8)] or null
    T* __restrict__ dx,                      // [M,C]
    float* __restrict__ dgamma,              // [C]
    float* __restrict__ dbeta,               // [C]
    T* __restrict__ dresidual,               // [M,C], null without a mask
    long long rows, int channels, Activation activation) {
  const int c = blockIdx.x;
  const float scale = batchnorm_scale(gamma[c], rstd[c]);
  const auto normalised = [&](long long m) { return (load(x[m * channels + c]) - mean[c]) * rstd[c]; };
  const auto gradient = [&](long long m) {  // to the activation's input
    const double dy_m = load(dy[m * channels + c]);
    if (mask) return mask[m * ((channels + 7) / 8) + c / 8] >> c % 8 & 1 ? dy_m : 0.0;
    const float u = batchnorm_pre(batchnorm_centre(to_float(x[m * channels + c]), mean[c]), scale, beta[c]);
    const double value = gamma[c] * normalised(m) + beta[c];
    return batchnorm_gradient_exact(dy_m, value, u, activation.act, activation.clamp);
  };
  double sum_g = 0, sum_gx = 0;
  for (long long m = threadIdx.x; m < rows; m += kThreads) {
    const double g = gradient(m);
    sum_g += g;
    sum_gx += g * normalised(m);
  }
  sum_g = sum_for_all(sum_g);
  sum_gx = sum_for_all(sum_gx);
  if (threadIdx.x == 0) {
    dbeta[c] = static_cast<float>(sum_g);
    dgamma[c] = static_cast<float>(sum_gx);
  }
  for (long long m = threadIdx.x; m < rows; m += kThreads) {
    const long long i = m * channels + c;
    const double g = gradient(m);
    const double centred = g - sum_g / rows - normalised(m) * sum_gx / rows;
    dx[i] = from_float<T>(static_cast<float>(static_cast<double>(gamma[c]) * rstd[c] * centred));
    if (mask) dresidual[i] = from_float<T>(static_cast<float>(g));
  }
}

const float* channels_of(const void* p) { return static_cast<const float*>(p); }
float* channels_of(void* p) { return static_cast<float*>(p); }
Activation activation_of(const BatchnormProblem& p) { return {p.act, batchnorm_clamp(p.act)}; }

template <class T>
void fwd_train(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a, Stream stream) {
  batchnorm_fwd_train_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta),
      static_cast<const T*>(a.residual), channels_of(a.running_mean), channels_of(a.running_var),
      static_cast<T*>(a.y), channels_of(a.saved_mean), channels_of(a.saved_rstd), p.per_channel(), p.c, p.eps,
      p.momentum, batchnorm_unbiased(p.per_channel()), activation_of(p));
  check_launch("batchnorm_fwd_train_naive_kernel");
  if (p.masked()) launch_batchnorm_mask(p, a.y, a.mask, stream);
}

template <class T>
void fwd_apply(const BatchnormProblem& p, const BatchnormFwdApply::Args& a, Stream stream) {
  batchnorm_fwd_apply_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta), channels_of(a.mean),
      channels_of(a.rstd), static_cast<const T*>(a.residual), static_cast<T*>(a.y), p.per_channel(), p.c,
      p.eps, false, activation_of(p));
  check_launch("batchnorm_fwd_apply_naive_kernel");
}

template <class T>
void fwd_infer(const BatchnormProblem& p, const BatchnormFwdInfer::Args& a, Stream stream) {
  batchnorm_fwd_apply_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta), channels_of(a.running_mean),
      channels_of(a.running_var), static_cast<const T*>(a.residual), static_cast<T*>(a.y), p.per_channel(),
      p.c, p.eps, true, activation_of(p));
  check_launch("batchnorm_fwd_apply_naive_kernel");
}

template <class T>
void bwd(const BatchnormProblem& p, const BatchnormBwd::Args& a, Stream stream) {
  batchnorm_bwd_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.dy), static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta),
      channels_of(a.saved_mean), channels_of(a.saved_rstd), static_cast<const unsigned char*>(a.mask),
      static_cast<T*>(a.dx), channels_of(a.dgamma), channels_of(a.dbeta), static_cast<T*>(a.dresidual),
      p.per_channel(), p.c, activation_of(p));
  check_launch("batchnorm_bwd_naive_kernel");
}

Support supports(const BatchnormProblem&, const Device&) { return Support::yes(); }

template <class Pass>
using Run = void (*)(const BatchnormProblem&, const typename Pass::Args&, Stream);

template <class Pass, Run<Pass> kF32, Run<Pass> kBF16>
constexpr Impl<Pass> naive() {
  return {.name = "naive",
          .supports = supports,
          .plan = [](const BatchnormProblem& p, const Device&, std::string_view config) {
            require_no_config(config);
            return make_plan<typename Pass::Args>(0, [p](const typename Pass::Args& a, void*, Stream stream) {
              (p.dtype == DType::kBF16 ? kBF16 : kF32)(p, a, stream);
            });
          }};
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_naive =
    naive<BatchnormFwdTrain, fwd_train<float>, fwd_train<bf16>>();
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_naive =
    naive<BatchnormFwdApply, fwd_apply<float>, fwd_apply<bf16>>();
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_naive =
    naive<BatchnormFwdInfer, fwd_infer<float>, fwd_infer<bf16>>();
extern const Impl<BatchnormBwd> batchnorm_bwd_naive = naive<BatchnormBwd, bwd<float>, bwd<bf16>>();

}  // namespace kiln
