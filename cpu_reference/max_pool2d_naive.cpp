// max_pool2d, the judge: plain loops over windows.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

// Where and how the position of output `pixel`, channel c is saved.
int read_position(const MaxPool2dProblem& o, const uint8_t* arg, long long pixel, int c) {
  const uint8_t* of = arg + pixel * o.arg_bytes_per_pixel();
  return o.arg == PoolArg::kArg2 ? of[c / 4] >> (2 * (c % 4)) & 3 : of[c];
}

void write_position(const MaxPool2dProblem& o, uint8_t* arg, long long pixel, int c, int position) {
  uint8_t* of = arg + pixel * o.arg_bytes_per_pixel();
  if (o.arg == PoolArg::kArg8) {
    of[c] = static_cast<uint8_t>(position);
  } else {
    const int others = c % 4 == 0 ? 0 : of[c / 4];
    of[c / 4] = static_cast<uint8_t>(others | position << (2 * (c % 4)));
  }
}

// As in PyTorch: the first maximum, unless there is a NaN, then the last NaN.
void max_pool2d_fwd(const MaxPool2dProblem& o, const MaxPool2dFwd::Args& a) {
  const float* x = f32(a.x);                    // [N,H,W,C]
  float* y = f32(a.y);                          // [N,P,Q,C]
  uint8_t* arg = static_cast<uint8_t*>(a.arg);  // as the problem's encoding, or null
  long long i = 0;
  for (long long n = 0; n < o.n; ++n) {
    for (int p = 0; p < o.p(); ++p) {
      for (int q = 0; q < o.q(); ++q) {
        for (int c = 0; c < o.c; ++c, ++i) {
          int position = -1;
          for (int r = 0; r < o.r; ++r) {
            for (int s = 0; s < o.s; ++s) {
              const int h = p * o.stride_h + r - o.pad_h;
              const int w = q * o.stride_w + s - o.pad_w;
              if (h < 0 || h >= o.h || w < 0 || w >= o.w) continue;
              const float v = x[((n * o.h + h) * o.w + w) * o.c + c];
              if (position < 0 || v > y[i] || std::isnan(v)) {
                y[i] = v;
                position = r * o.s + s;
              }
            }
          }
          if (arg) write_position(o, arg, i / o.c, c, position);
        }
      }
    }
  }
}

size_t bwd_bytes(const MaxPool2dProblem& o) { return sizeof(double) * o.n * o.h * o.w * o.c; }

// Scatters in double; an element's windows arrive in (p,q) order.
void max_pool2d_bwd(const MaxPool2dProblem& o, const MaxPool2dBwd::Args& a, void* workspace) {
  const float* dy = f32(a.dy);                              // [N,P,Q,C]
  const uint8_t* arg = static_cast<const uint8_t*>(a.arg);  // as the problem's encoding
  double* dx = static_cast<double*>(workspace);             // [N,H,W,C]
  const long long elements = static_cast<long long>(bwd_bytes(o) / sizeof(double));
  std::fill_n(dx, elements, 0.0);
  long long i = 0;
  for (long long n = 0; n < o.n; ++n) {
    for (int p = 0; p < o.p(); ++p) {
      for (int q = 0; q < o.q(); ++q) {
        for (int c = 0; c < o.c; ++c, ++i) {
          const int position = read_position(o, arg, i / o.c, c);
          const int h = p * o.stride_h + position / o.s - o.pad_h;
          const int w = q * o.stride_w + position % o.s - o.pad_w;
          if (position >= o.r * o.s || h < 0 || h >= o.h || w < 0 || w >= o.w) continue;  // not a position
          dx[((n * o.h + h) * o.w + w) * o.c + c] += dy[i];
        }
      }
    }
  }
  std::transform(dx, dx + elements, f32(a.dx), [](double v) { return static_cast<float>(v); });
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_naive =
    cpu_impl<MaxPool2dFwd, max_pool2d_fwd>("cpu_naive");
extern const Impl<MaxPool2dBwd> max_pool2d_bwd_cpu_naive =
    cpu_impl<MaxPool2dBwd, bwd_bytes, max_pool2d_bwd>("cpu_naive");

}  // namespace kiln
