// batchnorm, the judge: one channel at a time, double sums. Only on which side of a kink a value lies, and
// which of a window is the largest, is decided by the shared fp32 arithmetic of batchnorm_math.h.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_reference/cpu_support.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"

namespace kiln {
namespace {

// Calls body(n, p, q) for every window.
template <class Body>
void each_window(const BatchnormProblem& o, const Body& body) {
  for (int n = 0; n < o.n; ++n) {
    for (int p = 0; p < o.out_h(); ++p) {
      for (int q = 0; q < o.out_w(); ++q) body(batchnorm_window(o, n, p, q));
    }
  }
}

int read_position(const BatchnormProblem& p, const unsigned char* arg, long long window, int c) {
  return arg[window * p.arg_bytes_per_pixel() + c / 4] >> c % 4 * 2 & 3;
}

void write_position(const BatchnormProblem& p, unsigned char* arg, long long window, int c, int position) {
  unsigned char& byte = arg[window * p.arg_bytes_per_pixel() + c / 4];
  byte = static_cast<unsigned char>((c % 4 ? byte : 0) | position << c % 4 * 2);
}

// y[:,c] from a channel's statistics, and arg where it is wanted; mean32 and rstd32 are their fp32 roundings.
void normalise_channel(const BatchnormProblem& p, int c, double mean, double rstd, float mean32, float rstd32,
                       const float* x, const float* gamma, const float* beta, const float* residual, float* y,
                       unsigned char* arg = nullptr) {
  const float scale = batchnorm_scale(gamma[c], rstd32);
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  const auto pre = [&](long long i) {
    const float u = batchnorm_pre(batchnorm_centre(x[i], mean32), scale, beta[c]);
    return p.residual ? batchnorm_join(u, residual[i]) : u;
  };
  const auto activated = [&](long long i) {
    const double value = gamma[c] * (x[i] - mean) * rstd + beta[c] + (p.residual ? residual[i] : 0.0);
    return static_cast<float>(batchnorm_activate_exact(value, pre(i), p.act, clamp));
  };
  if (!p.pool) {
    for (long long i = c; i < p.per_channel() * p.c; i += p.c) y[i] = activated(i);
    return;
  }
  each_window(p, [&](const BatchnormWindow& at) {
    BatchnormMaximum best;
    for (int k = 0; k < 4; ++k) best.take(clamp.activate(pre(at.pixel[k] * p.c + c)), k);
    y[at.out * p.c + c] = activated(at.pixel[best.position] * p.c + c);
    if (arg) write_position(p, arg, at.out, c, best.position);
  });
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

void update_running(const BatchnormProblem& p, double mean, double var, float& running_mean,
                    float& running_var) {
  const double unbiased = var * batchnorm_unbiased(p.per_channel());
  running_mean = static_cast<float>((1.0 - p.momentum) * running_mean + p.momentum * mean);
  running_var = static_cast<float>((1.0 - p.momentum) * running_var + p.momentum * unbiased);
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
    saved_mean[c] = static_cast<float>(mean);
    saved_rstd[c] = static_cast<float>(rstd);
    update_running(p, mean, var, running_mean[c], running_var[c]);
    normalise_channel(p, c, mean, rstd, saved_mean[c], saved_rstd[c], x, f32(a.gamma), f32(a.beta),
                      f32(a.residual), f32(a.y), static_cast<unsigned char*>(a.arg));
  }
  if (p.masked()) write_mask(p, f32(a.y), static_cast<unsigned char*>(a.mask));
}

void fwd_given(const BatchnormProblem& p, const BatchnormFwdGiven::Args& a) {
  for (int c = 0; c < p.c; ++c) {
    const float mean = f32(a.mean)[c];  // of [C]
    const float var = f32(a.var)[c];    // of [C]
    const double rstd = 1.0 / std::sqrt(static_cast<double>(var) + p.eps);
    float& saved_rstd = f32(a.saved_rstd)[c];  // of [C]
    saved_rstd = static_cast<float>(rstd);
    update_running(p, mean, var, f32(a.running_mean)[c], f32(a.running_var)[c]);
    normalise_channel(p, c, mean, rstd, mean, saved_rstd, f32(a.x), f32(a.gamma), f32(a.beta),
                      f32(a.residual), f32(a.y), static_cast<unsigned char*>(a.arg));
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
  const float* dy = f32(a.dy);                                   // [N,H,W,C]; pooled with pool
  const float* x = f32(a.x);                                     // [N,H,W,C]
  const float* gamma = f32(a.gamma);                             // [C]
  const float* beta = f32(a.beta);                               // [C]
  const float* mean = f32(a.saved_mean);                         // [C]
  const float* rstd = f32(a.saved_rstd);                         // [C]
  const auto* mask = static_cast<const unsigned char*>(a.mask);  // [N,H,W,ceil(C/8)]
  const auto* arg = static_cast<const unsigned char*>(a.arg);    // [N,H/2,W/2,ceil(C/4)]
  float* dx = f32(a.dx);                                         // [N,H,W,C]
  const double m = static_cast<double>(p.per_channel());
  const long long elements = p.per_channel() * p.c;
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  std::vector<float> unpooled(p.pool ? static_cast<size_t>(p.per_channel()) : 0);  // dy of a channel
  for (int c = 0; c < p.c; ++c) {
    std::fill(unpooled.begin(), unpooled.end(), 0.0f);
    if (p.pool) {
      each_window(p, [&](const BatchnormWindow& at) {
        unpooled[static_cast<size_t>(at.pixel[read_position(p, arg, at.out, c)])] = dy[at.out * p.c + c];
      });
    }
    const auto outer = [&](long long i) { return p.pool ? unpooled[static_cast<size_t>(i / p.c)] : dy[i]; };
    const float scale = batchnorm_scale(gamma[c], rstd[c]);
    const auto normalised = [&](long long i) { return (static_cast<double>(x[i]) - mean[c]) * rstd[c]; };
    const auto gradient = [&](long long i) {  // to the activation's input
      if (p.masked()) {
        const int byte = mask[i / p.c * p.mask_bytes_per_pixel() + c / 8];
        return byte >> c % 8 & 1 ? static_cast<double>(outer(i)) : 0.0;
      }
      const float u = batchnorm_pre(batchnorm_centre(x[i], mean[c]), scale, beta[c]);
      return batchnorm_gradient_exact(outer(i), gamma[c] * normalised(i) + beta[c], u, p.act, clamp);
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
extern const Impl<BatchnormFwdGiven> batchnorm_fwd_given_cpu_naive =
    cpu_impl<BatchnormFwdGiven, fwd_given>("cpu_naive");
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_cpu_naive =
    cpu_impl<BatchnormFwdApply, fwd_apply>("cpu_naive");
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_cpu_naive =
    cpu_impl<BatchnormFwdInfer, fwd_infer>("cpu_naive");
extern const Impl<BatchnormBwd> batchnorm_bwd_cpu_naive = cpu_impl<BatchnormBwd, bwd>("cpu_naive");

}  // namespace kiln
