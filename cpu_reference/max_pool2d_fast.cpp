// max_pool2d on all cores: a thread owns rows of the output (pool2d_windows.h); the inner loops run over
// channels and are vectorised.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu_reference/cpu_support.h"
#include "cpu_reference/pool2d_windows.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;  // channels whose maxima and positions stay in the L1 cache

// Positions of `count` channels, the first a multiple of 4, four a byte.
void pack_positions(const int* position, int count,
                    uint8_t* arg) {  // [ceil(count/4)]
  for (int c = 0; c < count; c += 4) {
    int four = 0;
    for (int j = 0; j < std::min(4, count - c); ++j) four |= position[c + j] << (2 * j);
    arg[c / 4] = static_cast<uint8_t>(four);
  }
}

// One output pixel, channels [begin, begin + count), its window at (h, w), which may be negative.
KILN_CPU_CLONES void max_over_window(const PoolShape& g,
                                     const float* x,  // [H,W,C], one image
                                     int h, int w, int begin, int count,
                                     float* y,      // [C]
                                     uint8_t* arg,  // [C] or with kArg2 [ceil(C/4)], or null
                                     PoolArg encoding) {
  const int r0 = std::max(0, -h), r1 = std::min(g.r, g.h - h);  // the part inside the image, never empty
  const int s0 = std::max(0, -w), s1 = std::min(g.s, g.w - w);
  float best[kBlock];
  int position[kBlock];
  for (int c = 0; c < count; ++c) best[c] = -std::numeric_limits<float>::infinity();
  for (int c = 0; c < count; ++c) position[c] = r0 * g.s + s0;
  for (int r = r0; r < r1; ++r) {
    for (int s = s0; s < s1; ++s) {
      const float* tap = x + (static_cast<long long>(h + r) * g.w + w + s) * g.c + begin;
      const int at = r * g.s + s;
      for (int c = 0; c < count; ++c) {
        const bool better = (tap[c] > best[c]) | (tap[c] != tap[c]);
        best[c] = better ? tap[c] : best[c];
        position[c] = better ? at : position[c];
      }
    }
  }
  for (int c = 0; c < count; ++c) y[begin + c] = best[c];
  if (encoding == PoolArg::kArg2) {
    pack_positions(position, count, arg + begin / 4);
  } else if (arg) {
    for (int c = 0; c < count; ++c) arg[begin + c] = static_cast<uint8_t>(position[c]);
  }
}

// dx[c] += dy[c] where the saved position is `at`.
KILN_CPU_CLONES void add_where_chosen(const float* dy, const uint8_t* arg, int at, float* dx, int channels) {
  for (int c = 0; c < channels; ++c) dx[c] += arg[c] == at ? dy[c] : 0.0f;
}

KILN_CPU_CLONES void add_where_chosen_arg2(const float* dy,
                                           const uint8_t* arg,  // [ceil(channels/4)]
                                           int at, float* dx, int channels) {
  for (int c = 0; c < channels; ++c) dx[c] += (arg[c / 4] >> (2 * (c % 4)) & 3) == at ? dy[c] : 0.0f;
}

void max_pool2d_fwd(const MaxPool2dProblem& problem, const MaxPool2dFwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  for_each_window(g, problem.n, [&](long long image, int h, int w, long long out) {
    uint8_t* arg = a.arg ? static_cast<uint8_t*>(a.arg) + out / g.c * problem.arg_bytes_per_pixel() : nullptr;
    for (int c = 0; c < g.c; c += kBlock) {
      max_over_window(g, f32(a.x) + image * g.h * g.w * g.c, h, w, c, std::min(kBlock, g.c - c),
                      f32(a.y) + out, arg, problem.arg);
    }
  });
}

void max_pool2d_bwd(const MaxPool2dProblem& problem, const MaxPool2dBwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  const auto* arg = static_cast<const uint8_t*>(a.arg);
  gather_windows(g, problem.n, f32(a.dx), [&](long long in, int r, int s, float* dx) {
    if (problem.arg == PoolArg::kArg2) {
      add_where_chosen_arg2(f32(a.dy) + in, arg + in / g.c * problem.arg_bytes_per_pixel(), r * g.s + s, dx,
                            g.c);
    } else {
      add_where_chosen(f32(a.dy) + in, arg + in, r * g.s + s, dx, g.c);
    }
  });
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_fast = cpu_impl<MaxPool2dFwd, max_pool2d_fwd>("cpu_fast");
extern const Impl<MaxPool2dBwd> max_pool2d_bwd_cpu_fast = cpu_impl<MaxPool2dBwd, max_pool2d_bwd>("cpu_fast");

}  // namespace kiln
