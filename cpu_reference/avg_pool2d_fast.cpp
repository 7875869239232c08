// avg_pool2d on all cores: a thread owns rows of the output (pool2d_windows.h) and sums in fp32; the inner
// loops run over channels and are vectorised.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "cpu_reference/pool2d_windows.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;  // channels whose sums stay in registers or the L1 cache

float share_of_element(const PoolShape& g) { return static_cast<float>(1.0 / (1.0 * g.r * g.s)); }

// One output pixel, channels [begin, begin + count), its window at (h, w), which may be negative.
KILN_CPU_CLONES void mean_over_window(const PoolShape& g,
                                      const float* x,  // [H,W,C], one image
                                      int h, int w, int begin, int count, float share,
                                      float* y) {               // [C]
  const int r0 = std::max(0, -h), r1 = std::min(g.r, g.h - h);  // the part inside the image
  const int s0 = std::max(0, -w), s1 = std::min(g.s, g.w - w);
  float sum[kBlock] = {};
  for (int r = r0; r < r1; ++r) {
    for (int s = s0; s < s1; ++s) {
      const float* tap = x + (static_cast<long long>(h + r) * g.w + w + s) * g.c + begin;
      for (int c = 0; c < count; ++c) sum[c] += tap[c];
    }
  }
  for (int c = 0; c < count; ++c) y[begin + c] = sum[c] * share;
}

KILN_CPU_CLONES void add_share(const float* dy, float share, float* dx, int channels) {
  for (int c = 0; c < channels; ++c) dx[c] += dy[c] * share;
}

void avg_pool2d_fwd(const AvgPool2dProblem& problem, const AvgPool2dFwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  const float share = share_of_element(g);
  for_each_window(g, problem.n, [&](long long image, int h, int w, long long out) {
    for (int c = 0; c < g.c; c += kBlock) {
      mean_over_window(g, f32(a.x) + image * g.h * g.w * g.c, h, w, c, std::min(kBlock, g.c - c), share,
                       f32(a.y) + out);
    }
  });
}

void avg_pool2d_bwd(const AvgPool2dProblem& problem, const AvgPool2dBwd::Args& a) {
  const PoolShape g = make_pool_shape(problem);
  const float share = share_of_element(g);
  gather_windows(g, problem.n, f32(a.dx),
                 [&](long long in, int, int, float* dx) { add_share(f32(a.dy) + in, share, dx, g.c); });
}

}  // namespace

extern const Impl<AvgPool2dFwd> avg_pool2d_fwd_cpu_fast = cpu_impl<AvgPool2dFwd, avg_pool2d_fwd>("cpu_fast");
extern const Impl<AvgPool2dBwd> avg_pool2d_bwd_cpu_fast = cpu_impl<AvgPool2dBwd, avg_pool2d_bwd>("cpu_fast");

}  // namespace kiln
