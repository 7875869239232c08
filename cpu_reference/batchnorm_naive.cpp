// batchnorm, the judge: one channel at a time, double sums. Only on which side of a kink a value lies is
// decided by the shared fp32 arithmetic of batchnorm_math.h.
#include <algorithm>
#include <cmath>

#include "cpu_reference/cpu_support.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"

namespace kiln {
namespace {

// y[:,c] from a channel's statistics; mean32 and rstd32 are their fp32 roundings.
void normalise_channel(const BatchnormProblem& p, int c, double mean, double rstd, float mean32, float rstd32,
                       const float* x, const float* gamma, const float* beta, const float* residual,
                       float* y) {
  const float scale = batchnorm_scale(gamma[c], rstd32);
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  for (long long i = c; i < p.per_channel() * p.c; i += p.c) {
    double value = gamma[c] * (x[i] - mean) * rstd + beta[c];
    float u = batchnorm_pre(batchnorm_centre(x[i], mean32), scale, beta[c]);
    if (p.residual) {
      value += residual[i];
      u = batchnorm_join(u, residual[i]);
    }
    y[i] = static_cast<float>(batchnorm_activate_exact(value, u, p.act, clamp));
  }
}

// mask: [N,H,W,ceil(C/8)], of y: [N,H,W,C].
void write_mask(const BatchnormProblem& p, const float* y, unsigned char* mask) {
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  std::fill_n(mask, p.per_channel() * p.mask_bytes_per_pixel(), static_cast<unsigned char>(0));
  for (long long i = 0; i < p.per_channel() * p.c; ++i) {
    const long long pixel = i / p.c, c = i % p.c;
    if (clamp.passes(y[i])) mask[pixel * p.mask_bytes_per_pixel() + c / 8] |= 1 << c % 8;
  }
}

void fwd_train(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a) {
  const float* x = f32(a.x);                  // [N,H,W,C]
  float* running_mean = f32(a.running_mean);  // [C]
  float* running_var = f32(a.running_var);    // [C]
  float* saved_mean = f32(a.saved_mean);      // [C]
  float* saved_rstd = f32(a.saved_rstd);      // [C]
  const double m = static_cast<double>(p.per_channel());
  const long long elements = p.per_channel() * p.c;
  for (int c = 0; c < p.c; ++c) {
    double sum = 0, m2 = 0;
    for (long long i = c; i < elements; i += p.c) sum += x[i];
    const double mean = sum / m;
    for (long long i = c; i < elements; i += p.c) m2 += (x[i] - mean) * (x[i] - mean);
    const double var = m2 / m;
    const double rstd = 1.0 / std::sqrt(var + p.eps);
    const double unbiased = var * batchnorm_unbiased(p.per_channel());
    saved_mean[c] = static_cast<float>(mean);
    saved_rstd[c] = static_cast<float>(rstd);
    running_mean[c] = static_cast<float>((1.0 - p.momentum) * running_mean[c] + p.momentum * mean);
    running_var[c] = static_cast<float>((1.0 - p.momentum) * running_var[c] + p.momentum * unbiased);
    normalise_channel(p, c, mean, rstd, saved_mean[c], saved_rstd[c], x, f32(a.gamma), f32(a.beta),
                      f32(a.residual), f32(a.y));
  }
  if (p.masked()) write_mask(p, f32(a.y), static_cast<unsigned char*>(a.mask));
}

void fwd_apply(const BatchnormProblem& p, const BatchnormFwdApply::Args& a) {
  for (int c = 0; c < p.c; ++c) {
    const float mean = f32(a.mean)[c];  // of [C]
    const float rstd = f32(a.rstd)[c];  // of [C]
    normalise_channel(p, c, mean, rstd, mean, rstd, f32(a.x), f32(a.gamma), f32(a.beta), f32(a.residual),
                      f32(a.y));
  }
}

void fwd_infer(const BatchnormProblem& p, const BatchnormFwdInfer::Args& a) {
  for (int c = 0; c < p.c; ++c) {
    const float mean = f32(a.running_mean)[c];  // of [C]
    const float var = f32(a.running_var)[c];    // of [C]
    const double rstd = 1.0 / std::sqrt(static_cast<double>(var) + p.eps);
    normalise_channel(p, c, mean, rstd, mean, batchnorm_rstd(var, p.eps), f32(a.x), f32(a.gamma), f32(a.beta),
                      f32(a.residual), f32(a.y));
  }
}

void bwd(const BatchnormProblem& p, const BatchnormBwd::Args& a) {
  const float* dy = f32(a.dy);                                   // [N,H,W,C]
  const float* x = f32(a.x);                                     // [N,H,W,C]
  const float* gamma = f32(a.gamma);                             // [C]
  const float* beta = f32(a.beta);                               // [C]
  const float* mean = f32(a.saved_mean);                         // [C]
  const float* rstd = f32(a.saved_rstd);                         // [C]
  const auto* mask = static_cast<const unsigned char*>(a.mask);  // [N,H,W,ceil(C/8)]
  float* dx = f32(a.dx);                                         // [N,H,W,C]
  const double m = static_cast<double>(p.per_channel());
  const long long elements = p.per_channel() * p.c;
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  for (int c = 0; c < p.c; ++c) {
    const float scale = batchnorm_scale(gamma[c], rstd[c]);
    const auto normalised = [&](long long i) { return (static_cast<double>(x[i]) - mean[c]) * rstd[c]; };
    const auto gradient = [&](long long i) {  // to the activation's input
      if (p.masked()) {
        const int byte = mask[i / p.c * p.mask_bytes_per_pixel() + c / 8];
        return byte >> c % 8 & 1 ? static_cast<double>(dy[i]) : 0.0;
      }
      const float u = batchnorm_pre(batchnorm_centre(x[i], mean[c]), scale, beta[c]);
      return batchnorm_gradient_exact(dy[i], gamma[c] * normalised(i) + beta[c], u, p.act, clamp);
    };
    double dgamma = 0, dbeta = 0;
    for (long long i = c; i < elements; i += p.c) {
      dbeta += gradient(i);
      dgamma += gradient(i) * normalised(i);
    }
    f32(a.dgamma)[c] = static_cast<float>(dgamma);
    f32(a.dbeta)[c] = static_cast<float>(dbeta);
    for (long long i = c; i < elements; i += p.c) {
      const double centred = gradient(i) - dbeta / m - normalised(i) * dgamma / m;
      dx[i] = static_cast<float>(static_cast<double>(gamma[c]) * rstd[c] * centred);
      if (p.masked()) f32(a.dresidual)[i] = static_cast<float>(gradient(i));
    }
  }
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_cpu_naive =
    cpu_impl<BatchnormFwdTrain, fwd_train>("cpu_naive");
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_cpu_naive =
    cpu_impl<BatchnormFwdApply, fwd_apply>("cpu_naive");
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_cpu_naive =
    cpu_impl<BatchnormFwdInfer, fwd_infer>("cpu_naive");
extern const Impl<BatchnormBwd> batchnorm_bwd_cpu_naive = cpu_impl<BatchnormBwd, bwd>("cpu_naive");

}  // namespace kiln
