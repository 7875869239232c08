// depthwise_conv2d, the judge: plain loops over the definition, summed in double. Taps on the padding are
// skipped. fwd and dgrad sum an output element at a time, wgrad an element of dw at a time.
#include "cpu_reference/cpu_support.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {
namespace {

void fwd(const DepthwiseConv2dProblem& p, const DepthwiseConv2dFwd::Args& a) {
  const float *x = f32(a.x), *w = f32(a.w), *bias = p.bias ? f32(a.bias) : nullptr;
  float* y = f32(a.y);
  const int P = p.p(), Q = p.q();
  for (int n = 0; n < p.n; ++n) {
    for (int op = 0; op < P; ++op) {
      for (int oq = 0; oq < Q; ++oq) {
        for (int c = 0; c < p.c; ++c) {
          double sum = bias ? bias[c] : 0.0;
          for (int r = 0; r < p.r; ++r) {
            const int ih = op * p.stride_h + r - p.pad_h;
            if (ih < 0 || ih >= p.h) continue;
            for (int s = 0; s < p.s; ++s) {
              const int iw = oq * p.stride_w + s - p.pad_w;
              if (iw < 0 || iw >= p.w) continue;
              sum += static_cast<double>(x[((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.c + c]) *
                     w[(static_cast<size_t>(r) * p.s + s) * p.c + c];
            }
          }
          y[((static_cast<size_t>(n) * P + op) * Q + oq) * p.c + c] = static_cast<float>(sum);
        }
      }
    }
  }
}

void dgrad(const DepthwiseConv2dProblem& p, const DepthwiseConv2dDgrad::Args& a) {
  const float *dy = f32(a.dy), *w = f32(a.w);
  float* dx = f32(a.dx);
  const int P = p.p(), Q = p.q();
  for (int n = 0; n < p.n; ++n) {
    for (int ih = 0; ih < p.h; ++ih) {
      for (int iw = 0; iw < p.w; ++iw) {
        for (int c = 0; c < p.c; ++c) {
          double sum = 0;
          for (int r = 0; r < p.r; ++r) {
            const int top = ih + p.pad_h - r;
            if (top < 0 || top % p.stride_h != 0 || top / p.stride_h >= P) continue;
            for (int s = 0; s < p.s; ++s) {
              const int left = iw + p.pad_w - s;
              if (left < 0 || left % p.stride_w != 0 || left / p.stride_w >= Q) continue;
              const size_t pixel = (static_cast<size_t>(n) * P + top / p.stride_h) * Q + left / p.stride_w;
              sum +=
                  static_cast<double>(dy[pixel * p.c + c]) * w[(static_cast<size_t>(r) * p.s + s) * p.c + c];
            }
          }
          dx[((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.c + c] = static_cast<float>(sum);
        }
      }
    }
  }
}

// sum over the output pixels of dy[.,.,.,c] * x under tap (r,s).
double tap_gradient(const DepthwiseConv2dProblem& p,
                    const float* dy,  // [N,P,Q,C]
                    const float* x,   // [N,H,W,C]
                    int r, int s, int c) {
  const int P = p.p(), Q = p.q();
  double sum = 0;
  for (int n = 0; n < p.n; ++n) {
    for (int op = 0; op < P; ++op) {
      const int ih = op * p.stride_h + r - p.pad_h;
      if (ih < 0 || ih >= p.h) continue;
      for (int oq = 0; oq < Q; ++oq) {
        const int iw = oq * p.stride_w + s - p.pad_w;
        if (iw < 0 || iw >= p.w) continue;
        sum += static_cast<double>(dy[((static_cast<size_t>(n) * P + op) * Q + oq) * p.c + c]) *
               x[((static_cast<size_t>(n) * p.h + ih) * p.w + iw) * p.c + c];
      }
    }
  }
  return sum;
}

void wgrad(const DepthwiseConv2dProblem& p, const DepthwiseConv2dWgrad::Args& a) {
  const float *dy = f32(a.dy), *x = f32(a.x);
  for (int r = 0; r < p.r; ++r) {
    for (int s = 0; s < p.s; ++s) {
      for (int c = 0; c < p.c; ++c) {
        f32(a.dw)[(static_cast<size_t>(r) * p.s + s) * p.c + c] =
            static_cast<float>(tap_gradient(p, dy, x, r, s, c));
      }
    }
  }
  if (!p.bias) return;
  const size_t pixels = static_cast<size_t>(p.n) * p.p() * p.q();
  for (int c = 0; c < p.c; ++c) {
    double sum = 0;
    for (size_t i = 0; i < pixels; ++i) sum += dy[i * p.c + c];
    f32(a.dbias)[c] = static_cast<float>(sum);
  }
}

}  // namespace

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_cpu_naive =
    cpu_impl<DepthwiseConv2dFwd, fwd>("cpu_naive");
extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_cpu_naive =
    cpu_impl<DepthwiseConv2dDgrad, dgrad>("cpu_naive");
extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_cpu_naive =
    cpu_impl<DepthwiseConv2dWgrad, wgrad>("cpu_naive");

}  // namespace kiln
