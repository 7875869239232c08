// conv2d, the judge: plain loops over the definition, summed in double. Taps on the padding are skipped, and
// the innermost loop runs over the contiguous input channels.
#include <algorithm>

#include "cpu_reference/conv2d_pool.h"
#include "kernels/activation/activation_kind.h"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_naive;

namespace {

KILN_CPU_CLONES void fwd_loops(const Conv2dProblem& p,
                               const float* x,         // [N,H,W,c_stride]
                               const float* w,         // [K,R,S,C]
                               const float* scale,     // [K] or null
                               const float* bias,      // [K] or null
                               const float* residual,  // [N,P,Q,K] or null
                               float* y) {             // [N,P,Q,K]
  const int P = p.p(), Q = p.q();
  for (int n = 0; n < p.n; ++n) {
    for (int op = 0; op < P; ++op) {
      for (int oq = 0; oq < Q; ++oq) {
        for (int k = 0; k < p.k; ++k) {
          double sum = 0.0;
          for (int r = 0; r < p.r; ++r) {
            const int ih = op * p.stride_h + r - p.pad_h;
            if (ih < 0 || ih >= p.h) continue;
            for (int s = 0; s < p.s; ++s) {
              const int iw = oq * p.stride_w + s - p.pad_w;
              if (iw < 0 || iw >= p.w) continue;
              const float* pixel = x + ((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.x_channels();
              const float* tap = w + ((static_cast<size_t>(k) * p.r + r) * p.s + s) * p.c;
#pragma omp simd reduction(+ : sum)
              for (int c = 0; c < p.c; ++c) sum += static_cast<double>(pixel[c]) * tap[c];
            }
          }
          const size_t at = ((static_cast<size_t>(n) * P + op) * Q + oq) * p.k + k;
          if (scale) sum *= scale[k];
          if (bias) sum += bias[k];
          if (residual) sum += residual[at];
          y[at] = static_cast<float>(activate(sum, p.act));
        }
      }
    }
  }
}

KILN_CPU_CLONES void dgrad_loops(const Conv2dProblem& p,
                                 const float* dy,  // [N,P,Q,K]
                                 const float* w,   // [K,R,S,C]
                                 const float* x,   // [N,H,W,c_stride] or null
                                 float* dx,        // [N,H,W,c_stride]
                                 double* sum) {    // [C], scratch
  const Conv2dGate gate = conv2d_gate(p.dact);
  const int P = p.p(), Q = p.q();
  const size_t filter = static_cast<size_t>(p.r) * p.s * p.c;
  for (int n = 0; n < p.n; ++n) {
    for (int ih = 0; ih < p.h; ++ih) {
      for (int iw = 0; iw < p.w; ++iw) {
        const size_t pixel = ((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.x_channels();
        float* out = dx + pixel;
        for (int c = 0; c < p.c; ++c) sum[c] = p.accumulate ? out[c] : 0.0;
        for (int r = 0; r < p.r; ++r) {
          const int top = ih + p.pad_h - r;
          if (top < 0 || top % p.stride_h != 0 || top / p.stride_h >= P) continue;
          for (int s = 0; s < p.s; ++s) {
            const int left = iw + p.pad_w - s;
            if (left < 0 || left % p.stride_w != 0 || left / p.stride_w >= Q) continue;
            const float* grad =
                dy + ((static_cast<size_t>(n) * P + top / p.stride_h) * Q + left / p.stride_w) * p.k;
            for (int k = 0; k < p.k; ++k) {
              const double g = grad[k];
              const float* tap = w + k * filter + (static_cast<size_t>(r) * p.s + s) * p.c;
              for (int c = 0; c < p.c; ++c) sum[c] += g * tap[c];
            }
          }
        }
        for (int c = 0; x && c < p.c; ++c) sum[c] = gate.passes(x[pixel + c]) ? sum[c] : 0.0;
        for (int c = 0; c < p.c; ++c) out[c] = static_cast<float>(sum[c]);
        for (int c = p.c; c < p.x_channels(); ++c) out[c] = 0.0f;
      }
    }
  }
}

KILN_CPU_CLONES void wgrad_loops(const Conv2dProblem& p,
                                 const float* dy,  // [N,P,Q,K]
                                 const float* x,   // [N,H,W,c_stride]
                                 float* dw,        // [K,R,S,C]
                                 float* dbias,     // [K] or null
                                 double* sum) {    // [R,S,C], scratch
  const int P = p.p(), Q = p.q();
  const size_t filter = static_cast<size_t>(p.r) * p.s * p.c;
  for (int k = 0; k < p.k; ++k) {
    double bias_sum = 0;
    std::fill_n(sum, filter, 0.0);
    for (int n = 0; n < p.n; ++n) {
      for (int op = 0; op < P; ++op) {
        for (int oq = 0; oq < Q; ++oq) {
          const double g = dy[((static_cast<size_t>(n) * P + op) * Q + oq) * p.k + k];
          bias_sum += g;
          for (int r = 0; r < p.r; ++r) {
            const int ih = op * p.stride_h + r - p.pad_h;
            if (ih < 0 || ih >= p.h) continue;
            for (int s = 0; s < p.s; ++s) {
              const int iw = oq * p.stride_w + s - p.pad_w;
              if (iw < 0 || iw >= p.w) continue;
              const float* pixel = x + ((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.x_channels();
              double* tap = sum + (static_cast<size_t>(r) * p.s + s) * p.c;
              for (int c = 0; c < p.c; ++c) tap[c] += g * pixel[c];
            }
          }
        }
      }
    }
    for (size_t i = 0; i < filter; ++i) dw[k * filter + i] = static_cast<float>(sum[i]);
    if (dbias) dbias[k] = static_cast<float>(bias_sum);
  }
}

size_t dgrad_workspace(const Conv2dProblem& p) { return sizeof(double) * p.c; }
size_t wgrad_workspace(const Conv2dProblem& p) { return sizeof(double) * p.r * p.s * p.c; }

// Mean and biased variance of each channel of y.
KILN_CPU_CLONES void statistics(const Conv2dProblem& p,
                                const float* y,  // [N,P,Q,K]
                                float* mean,     // [K]
                                float* var) {    // [K]
  const size_t pixels = static_cast<size_t>(p.n) * p.p() * p.q();
  for (int k = 0; k < p.k; ++k) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < pixels; ++i) sum += y[i * p.k + k];
    const double middle = sum / static_cast<double>(pixels);
    for (size_t i = 0; i < pixels; ++i) squares += (y[i * p.k + k] - middle) * (y[i * p.k + k] - middle);
    mean[k] = static_cast<float>(middle);
    var[k] = static_cast<float>(squares / static_cast<double>(pixels));
  }
}

void fwd(const Conv2dProblem& p, const Conv2dFwd::Args& a) {
  fwd_loops(p, f32(a.x), f32(a.w), p.scale ? f32(a.scale) : nullptr, p.bias ? f32(a.bias) : nullptr,
            p.residual ? f32(a.residual) : nullptr, f32(a.y));
  if (p.stats) statistics(p, f32(a.y), f32(a.mean), f32(a.var));
}

void fwd_any(const Conv2dProblem& p, const Conv2dFwd::Args& a, void* workspace) {
  conv2d_fwd_with_pool(
      p, a, workspace, max_pool2d_fwd_cpu_naive,
      [](const Conv2dProblem& plain, const Conv2dFwd::Args& args, void*) { fwd(plain, args); });
}

void dgrad(const Conv2dProblem& p, const Conv2dDgrad::Args& a, void* workspace) {
  const float* x = p.dact != ActKind::kNone ? f32(a.x) : nullptr;
  dgrad_loops(p, f32(a.dy), f32(a.w), x, f32(a.dx), static_cast<double*>(workspace));
}

void wgrad(const Conv2dProblem& p, const Conv2dWgrad::Args& a, void* workspace) {
  wgrad_loops(p, f32(a.dy), f32(a.x), f32(a.dw), p.bias ? f32(a.dbias) : nullptr,
              static_cast<double*>(workspace));
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_cpu_naive =
    cpu_impl<Conv2dFwd, conv2d_unpooled_bytes, fwd_any>("cpu_naive");
extern const Impl<Conv2dDgrad> conv2d_dgrad_cpu_naive =
    cpu_impl<Conv2dDgrad, dgrad_workspace, dgrad>("cpu_naive");
extern const Impl<Conv2dWgrad> conv2d_wgrad_cpu_naive =
    cpu_impl<Conv2dWgrad, wgrad_workspace, wgrad>("cpu_naive");

}  // namespace kiln
