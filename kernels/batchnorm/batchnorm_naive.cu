// batchnorm fwd_train, fwd_given, fwd_apply, fwd_infer, bwd, the first rung: formulas in batchnorm.h.
//
// A block owns one channel c: its threads take the rows m with the block's stride, one scalar access at a
// time, and sum in double; on which side of a kink a value lies is the shared fp32 arithmetic of
// batchnorm_math.h, and so is which value of a window is the largest. A byte of the mask is eight blocks'
// work, one of arg four: batchnorm_mask.h makes the mask from y, batchnorm_arg_kernel makes arg, a byte a
// thread. Shared memory: 17 doubles. Any shape and alignment, deterministic. Mirrors
// cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_mask.h"
#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
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

// The image, and whether 2x2 windows stand behind it.
struct Image {
  int n, h, w, channels;
  bool pool;
  __host__ __device__ long long rows() const { return 1LL * n * h * w; }
  __host__ __device__ long long windows() const { return 1LL * n * (h / 2) * (w / 2); }
  __device__ BatchnormWindow window(long long i) const {
    const int q = static_cast<int>(i % (w / 2)), p = static_cast<int>(i / (w / 2) % (h / 2));
    return batchnorm_window(h, w, static_cast<int>(i / (w / 2) / (h / 2)), p, q);
  }
};

// Which of a window's four values, as T stores them, is the largest. Exact: batchnorm_math.h.
template <class T>
__device__ int largest_of(const T* __restrict__ x, const BatchnormWindow& window, int c, int channels,
                          float mean, float scale, float beta, const BatchnormClamp& clamp) {
  BatchnormMaximum best;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float value = to_float(x[window.pixel[k] * channels + c]);
    const float u = batchnorm_pre(batchnorm_centre(value, mean), scale, beta);
    best.take(to_float(from_float<T>(clamp.activate(u))), k);
  }
  return best.position;
}

// y[:,c]; mean32 and rstd32 are the fp32 roundings of mean and rstd.
template <class T>
__device__ void normalise_channel(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                                  const Image& image, double mean, double rstd, float mean32, float rstd32,
                                  float gamma, float beta, Activation activation) {
  const float scale = batchnorm_scale(gamma, rstd32);
  const int channels = image.channels, c = blockIdx.x;
  const long long outputs = image.pool ? image.windows() : image.rows();
  for (long long m = threadIdx.x; m < outputs; m += kThreads) {
    long long pixel = m;
    if (image.pool) {
      const BatchnormWindow window = image.window(m);
      const int k = largest_of(x, window, c, channels, mean32, scale, beta, activation.clamp);
      pixel = window.pixel[0] + k / 2 * image.w + k % 2;
    }
    const long long i = pixel * channels + c;
    double value = gamma * (load(x[i]) - mean) * rstd + beta;
    float u = batchnorm_pre(batchnorm_centre(to_float(x[i]), mean32), scale, beta);
    if (residual) {
      value += load(residual[i]);
      u = batchnorm_join(u, to_float(residual[i]));
    }
    y[m * channels + c] = from_float<T>(
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
    Image image, float eps, float momentum, double unbiased, Activation activation) {
  const int c = blockIdx.x, channels = image.channels;
  const long long rows = image.rows();
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
  normalise_channel(x, residual, y, image, mean, rstd, static_cast<float>(mean), static_cast<float>(rstd),
                    gamma[c], beta[c], activation);
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
    float* __restrict__ saved_rstd,    // [C], null but in fwd_given
    float* __restrict__ running_mean,  // [C], likewise
    float* __restrict__ running_var,   // [C], likewise
    Image image, float eps, float momentum, double unbiased, bool is_variance, Activation activation) {
  const int c = blockIdx.x;
  const double rstd = is_variance ? 1.0 / sqrt(static_cast<double>(spread[c]) + eps) : spread[c];
  const float rstd32 = is_variance ? batchnorm_rstd(spread[c], eps) : spread[c];
  if (saved_rstd && threadIdx.x == 0) {
    saved_rstd[c] = rstd32;
    running_mean[c] = static_cast<float>((1.0 - momentum) * running_mean[c] + momentum * mean[c]);
    running_var[c] =
        static_cast<float>((1.0 - momentum) * running_var[c] + momentum * (spread[c] * unbiased));
  }
  normalise_channel(x, residual, y, image, mean[c], rstd, mean[c], rstd32, gamma[c], beta[c], activation);
}

template <class T>
__global__ __launch_bounds__(kThreads) void batchnorm_arg_kernel(
    const T* __restrict__ x,          // [N,H,W,C]
    const float* __restrict__ gamma,  // [C]
    const float* __restrict__ beta,   // [C]
    const float* __restrict__ mean,   // [C]
    const float* __restrict__ rstd,   // [C]
    unsigned char* __restrict__ arg,  // [windows,C/4]
    Image image, BatchnormClamp clamp) {
  const int row_bytes = (image.channels + 3) / 4;
  const long long bytes = image.windows() * row_bytes, stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < bytes; i += stride) {
    const BatchnormWindow window = image.window(i / row_bytes);
    const int first = static_cast<int>(i % row_bytes) * 4;
    unsigned bits = 0;
    for (int c = first; c < min(first + 4, image.channels); ++c) {
      const int position = largest_of(x, window, c, image.channels, mean[c],
                                      batchnorm_scale(gamma[c], rstd[c]), beta[c], clamp);
      bits |= static_cast<unsigned>(position) << 2 * (c - first);
    }
    arg[i] = static_cast<unsigned char>(bits);
  }
}

// dy of pixel m: its window's, where that has its maximum there.
template <class T>
__device__ double unpooled(const T* __restrict__ dy, const unsigned char* __restrict__ arg,
                           const Image& image, long long m) {
  const int c = blockIdx.x, column = static_cast<int>(m % image.w),
            row = static_cast<int>(m / image.w % image.h);
  const int p = row / 2, q = column / 2, height = image.h / 2, width = image.w / 2;
  if (p >= height || q >= width) return 0.0;
  const long long window = (m / image.w / image.h * height + p) * width + q;
  const int position = arg[window * ((image.channels + 3) / 4) + c / 4] >> c % 4 * 2 & 3;
  return position == row % 2 * 2 + column % 2 ? load(dy[window * image.channels + c]) : 0.0;
}

template <class T>
__global__ __launch_bounds__(kThreads, 1) void batchnorm_bwd_naive_kernel(
    const T* __restrict__ dy,                // [M,C], with pool [windows,C]
    const T* __restrict__ x,                 // [M,C]
    const float* __restrict__ gamma,         // [C]
    const float* __restrict__ beta,          // [C]
    const float* __restrict__ mean,          // [C]
    const float* __restrict__ rstd,          // [C]
    const unsigned char* __restrict__ mask,  // [M,ceil(C/8)] or null
    const unsigned char* __restrict__ arg,   // [windows,ceil(C/4)] or null
    T* __restrict__ dx,                      // [M,C]
    float* __restrict__ dgamma,              // [C]
    float* __restrict__ dbeta,               // [C]
    T* __restrict__ dresidual,               // [M,C], null without a mask
    Image image, Activation activation) {
  const int c = blockIdx.x, channels = image.channels;
  const long long rows = image.rows();
  const float scale = batchnorm_scale(gamma[c], rstd[c]);
  const auto normalised = [&](long long m) { return (load(x[m * channels + c]) - mean[c]) * rstd[c]; };
  const auto gradient = [&](long long m) {  // to the activation's input
    const double dy_m = arg ? unpooled(dy, arg, image, m) : load(dy[m * channels + c]);
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
Image image_of(const BatchnormProblem& p) { return {p.n, p.h, p.w, p.c, p.pool}; }

template <class T>
void launch_arg(const BatchnormProblem& p, const void* x, const void* gamma, const void* beta,
                const void* mean, const void* rstd, void* arg, Stream stream) {
  const Image image = image_of(p);
  batchnorm_arg_kernel<T><<<grid_for(image.windows() * p.arg_bytes_per_pixel(), kThreads, 1 << 16), kThreads,
                            0, cuda_stream(stream)>>>(
      static_cast<const T*>(x), channels_of(gamma), channels_of(beta), channels_of(mean), channels_of(rstd),
      static_cast<unsigned char*>(arg), image, batchnorm_clamp(p.act));
  check_launch("batchnorm_arg_kernel");
}

template <class T>
void fwd_train(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a, Stream stream) {
  batchnorm_fwd_train_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta),
      static_cast<const T*>(a.residual), channels_of(a.running_mean), channels_of(a.running_var),
      static_cast<T*>(a.y), channels_of(a.saved_mean), channels_of(a.saved_rstd), image_of(p), p.eps,
      p.momentum, batchnorm_unbiased(p.per_channel()), activation_of(p));
  check_launch("batchnorm_fwd_train_naive_kernel");
  if (p.masked()) launch_batchnorm_mask(p, a.y, a.mask, stream);
  if (p.pool) launch_arg<T>(p, a.x, a.gamma, a.beta, a.saved_mean, a.saved_rstd, a.arg, stream);
}

template <class T>
void fwd_given(const BatchnormProblem& p, const BatchnormFwdGiven::Args& a, Stream stream) {
  batchnorm_fwd_apply_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta), channels_of(a.mean),
      channels_of(a.var), static_cast<const T*>(a.residual), static_cast<T*>(a.y), channels_of(a.saved_rstd),
      channels_of(a.running_mean), channels_of(a.running_var), image_of(p), p.eps, p.momentum,
      batchnorm_unbiased(p.per_channel()), true, activation_of(p));
  check_launch("batchnorm_fwd_apply_naive_kernel");
  if (p.masked()) launch_batchnorm_mask(p, a.y, a.mask, stream);
  if (p.pool) launch_arg<T>(p, a.x, a.gamma, a.beta, a.mean, a.saved_rstd, a.arg, stream);
}

template <class T>
void fwd_apply(const BatchnormProblem& p, const BatchnormFwdApply::Args& a, Stream stream) {
  batchnorm_fwd_apply_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta), channels_of(a.mean),
      channels_of(a.rstd), static_cast<const T*>(a.residual), static_cast<T*>(a.y), nullptr, nullptr, nullptr,
      image_of(p), p.eps, 0.0f, 1.0, false, activation_of(p));
  check_launch("batchnorm_fwd_apply_naive_kernel");
}

template <class T>
void fwd_infer(const BatchnormProblem& p, const BatchnormFwdInfer::Args& a, Stream stream) {
  batchnorm_fwd_apply_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta), channels_of(a.running_mean),
      channels_of(a.running_var), static_cast<const T*>(a.residual), static_cast<T*>(a.y), nullptr, nullptr,
      nullptr, image_of(p), p.eps, 0.0f, 1.0, true, activation_of(p));
  check_launch("batchnorm_fwd_apply_naive_kernel");
}

template <class T>
void bwd(const BatchnormProblem& p, const BatchnormBwd::Args& a, Stream stream) {
  batchnorm_bwd_naive_kernel<T><<<p.c, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.dy), static_cast<const T*>(a.x), channels_of(a.gamma), channels_of(a.beta),
      channels_of(a.saved_mean), channels_of(a.saved_rstd), static_cast<const unsigned char*>(a.mask),
      static_cast<const unsigned char*>(a.arg), static_cast<T*>(a.dx), channels_of(a.dgamma),
      channels_of(a.dbeta), static_cast<T*>(a.dresidual), image_of(p), activation_of(p));
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
extern const Impl<BatchnormFwdGiven> batchnorm_fwd_given_naive =
    naive<BatchnormFwdGiven, fwd_given<float>, fwd_given<bf16>>();
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_naive =
    naive<BatchnormFwdApply, fwd_apply<float>, fwd_apply<bf16>>();
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_naive =
    naive<BatchnormFwdInfer, fwd_infer<float>, fwd_infer<bf16>>();
extern const Impl<BatchnormBwd> batchnorm_bwd_naive = naive<BatchnormBwd, bwd<float>, bwd<bf16>>();

}  // namespace kiln
