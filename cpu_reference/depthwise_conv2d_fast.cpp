// depthwise_conv2d on all cores: the inner loops run over channels, kBlock of them at a time, whose sums stay
// in registers or the L1 cache.
//
//   fwd, dgrad  a thread owns rows (n,p) of y, (n,h) of dx; dgrad gathers, so that nothing is cleared or
//   shared wgrad       a thread owns a contiguous range of rows (n,p) of dy and its own [R*S+1,C] sums (the
//   last row
//               is dbias), which are then added in the order of the ranges
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/depthwise_conv2d/depthwise_conv2d.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;          // channels
constexpr long long kLeast = 4096;  // outputs below which threads are not worth waking

// Taps first, first + step ... of `count` that hit pixels first_pixel, first_pixel - back ... of `length`.
// For fwd: step 1 and pixels growing by one; for dgrad: step = stride and pixels falling by one.
struct Taps {
  int begin, end, step;  // tap indices
  int pixel, move;       // the pixel under tap `begin`, and its change with each further tap
};

// Filter taps of output `out` that lie inside the input.
Taps forward_taps(int out, int stride, int pad, int filter, int length) {
  const int origin = out * stride - pad;
  const int begin = std::max(0, -origin);
  return {begin, std::min(filter, length - origin), 1, origin + begin, 1};
}

// Filter taps of input `in` that lie inside the output.
Taps backward_taps(int in, int stride, int pad, int filter, int length) {
  const int origin = in + pad;
  int begin = origin % stride;
  // The output under tap r is (origin - r) / stride: too far right for the first few taps.
  const int beyond = origin / stride - (length - 1);
  if (beyond > 0) begin += std::min(beyond, filter) * stride;
  return {begin, std::min(filter, origin + 1), stride, (origin - begin) / stride, -1};
}

// out[c] = bias[c] + sum over the taps of in[pixel][c] * w[tap][c], for `count` channels.
KILN_CPU_CLONES void sum_taps(const float* in,    // [rows,columns,C], one image
                              const float* w,     // [R,S,C]
                              const float* bias,  // [C] or null
                              const Taps& rows, const Taps& columns, int in_columns, int filter_columns,
                              long long c_stride, int count, float* out) {
  float sum[kBlock];
  for (int c = 0; c < count; ++c) sum[c] = bias ? bias[c] : 0.0f;
  int h = rows.pixel;
  for (int r = rows.begin; r < rows.end; r += rows.step, h += rows.move) {
    int v = columns.pixel;
    for (int s = columns.begin; s < columns.end; s += columns.step, v += columns.move) {
      const float* pixel = in + (static_cast<long long>(h) * in_columns + v) * c_stride;
      const float* tap = w + (static_cast<long long>(r) * filter_columns + s) * c_stride;
      for (int c = 0; c < count; ++c) sum[c] += pixel[c] * tap[c];
    }
  }
  for (int c = 0; c < count; ++c) out[c] = sum[c];
}

void fwd(const DepthwiseConv2dProblem& p, const DepthwiseConv2dFwd::Args& a) {
  const int P = p.p(), Q = p.q();
  const long long all = 1LL * p.n * P;
  const float* bias = p.bias ? f32(a.bias) : nullptr;
#pragma omp parallel for schedule(static) if (all * Q * p.c > kLeast)
  for (long long row = 0; row < all; ++row) {
    const float* image = f32(a.x) + row / P * p.h * p.w * p.c;
    const Taps rows = forward_taps(static_cast<int>(row % P), p.stride_h, p.pad_h, p.r, p.h);
    for (int q = 0; q < Q; ++q) {
      const Taps columns = forward_taps(q, p.stride_w, p.pad_w, p.s, p.w);
      for (int c = 0; c < p.c; c += kBlock) {
        sum_taps(image + c, f32(a.w) + c, bias ? bias + c : nullptr, rows, columns, p.w, p.s, p.c,
                 std::min(kBlock, p.c - c), f32(a.y) + (row * Q + q) * p.c + c);
      }
    }
  }
}

void dgrad(const DepthwiseConv2dProblem& p, const DepthwiseConv2dDgrad::Args& a) {
  const int P = p.p(), Q = p.q();
  const long long all = 1LL * p.n * p.h;
#pragma omp parallel for schedule(static) if (all * p.w * p.c > kLeast)
  for (long long row = 0; row < all; ++row) {
    const float* image = f32(a.dy) + row / p.h * P * Q * p.c;
    const Taps rows = backward_taps(static_cast<int>(row % p.h), p.stride_h, p.pad_h, p.r, P);
    for (int v = 0; v < p.w; ++v) {
      const Taps columns = backward_taps(v, p.stride_w, p.pad_w, p.s, Q);
      for (int c = 0; c < p.c; c += kBlock) {
        sum_taps(image + c, f32(a.w) + c, nullptr, rows, columns, Q, p.s, p.c, std::min(kBlock, p.c - c),
                 f32(a.dx) + (row * p.w + v) * p.c + c);
      }
    }
  }
}

// sum[c] += sum over `pixels` of dy[i][c] * x[i * stride][c].
KILN_CPU_CLONES void add_products(const float* dy, const float* x, int pixels, long long dy_step,
                                  long long x_step, int count, float* sum) {
  float local[kBlock];
  for (int c = 0; c < count; ++c) local[c] = sum[c];
  for (int i = 0; i < pixels; ++i, dy += dy_step, x += x_step) {
    for (int c = 0; c < count; ++c) local[c] += dy[c] * x[c];
  }
  for (int c = 0; c < count; ++c) sum[c] = local[c];
}

KILN_CPU_CLONES void add_rows(const float* dy, int pixels, long long dy_step, int count, float* sum) {
  for (int i = 0; i < pixels; ++i, dy += dy_step) {
    for (int c = 0; c < count; ++c) sum[c] += dy[c];
  }
}

// Adds row `row` = (n,p) of dy to the sums.
void add_row(const DepthwiseConv2dProblem& p,
             const float* dy,  // [N,P,Q,C]
             const float* x,   // [N,H,W,C]
             long long row,
             float* sum) {  // [R*S+1,C]
  const int P = p.p(), Q = p.q();
  const long long C = p.c;
  const float* dy_row = dy + row * Q * C;
  const int top = static_cast<int>(row % P) * p.stride_h - p.pad_h;
  for (int c = 0; c < p.c; c += kBlock) {
    const int count = std::min(kBlock, p.c - c);
    for (int r = std::max(0, -top); r < std::min(p.r, p.h - top); ++r) {
      const float* x_row = x + (row / P * p.h + top + r) * p.w * C + c;
      for (int s = 0; s < p.s; ++s) {
        // The outputs whose tap s is inside: 0 <= q * stride + s - pad < w.
        const int lead = p.pad_w - s, tail = p.w - 1 + lead;
        if (tail < 0) continue;
        const int begin = lead > 0 ? (lead + p.stride_w - 1) / p.stride_w : 0;
        const int end = std::min(Q, tail / p.stride_w + 1);
        if (begin >= end) continue;
        add_products(dy_row + begin * C + c, x_row + (static_cast<long long>(begin) * p.stride_w - lead) * C,
                     end - begin, C, p.stride_w * C, count, sum + (r * p.s + s) * C + c);
      }
    }
    if (p.bias) add_rows(dy_row + c, Q, C, count, sum + p.r * p.s * C + c);
  }
}

int ranges_of(const DepthwiseConv2dProblem& p) {
  const long long rows = 1LL * p.n * p.p();
  const long long wanted = rows * p.q() * p.c > kLeast ? cpu_device().threads : 1;
  return static_cast<int>(std::max(1LL, std::min(wanted, rows)));
}

size_t sums_of(const DepthwiseConv2dProblem& p) { return (static_cast<size_t>(p.r) * p.s + 1) * p.c; }

size_t wgrad_workspace(const DepthwiseConv2dProblem& p) { return sizeof(float) * ranges_of(p) * sums_of(p); }

void wgrad(const DepthwiseConv2dProblem& p, const DepthwiseConv2dWgrad::Args& a, void* workspace) {
  const long long rows = 1LL * p.n * p.p();
  const int ranges = ranges_of(p);
  const size_t sums = sums_of(p), taps = sums - p.c;
  float* partial = static_cast<float*>(workspace);  // [ranges,R*S+1,C]
#pragma omp parallel for schedule(static) if (ranges > 1)
  for (int i = 0; i < ranges; ++i) {
    std::fill_n(partial + i * sums, sums, 0.0f);
    for (long long row = rows * i / ranges; row < rows * (i + 1) / ranges; ++row) {
      add_row(p, f32(a.dy), f32(a.x), row, partial + i * sums);
    }
  }
  for (int i = 1; i < ranges; ++i) {
    for (size_t j = 0; j < sums; ++j) partial[j] += partial[i * sums + j];
  }
  std::copy_n(partial, taps, f32(a.dw));
  if (p.bias) std::copy_n(partial + taps, p.c, f32(a.dbias));
}

}  // namespace

extern const Impl<DepthwiseConv2dFwd> depthwise_conv2d_fwd_cpu_fast =
    cpu_impl<DepthwiseConv2dFwd, fwd>("cpu_fast");
extern const Impl<DepthwiseConv2dDgrad> depthwise_conv2d_dgrad_cpu_fast =
    cpu_impl<DepthwiseConv2dDgrad, dgrad>("cpu_fast");
extern const Impl<DepthwiseConv2dWgrad> depthwise_conv2d_wgrad_cpu_fast =
    cpu_impl<DepthwiseConv2dWgrad, wgrad_workspace, wgrad>("cpu_fast");

}  // namespace kiln
