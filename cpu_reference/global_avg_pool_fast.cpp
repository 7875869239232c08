// global_avg_pool on all cores: a thread owns blocks of channels of an image and sums them in fp32 (forward),
// or whole images (backward); the inner loops run over channels and are vectorised.
#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;  // channels summed at a time, in registers or the L1 cache

// Means of `count` channels of one image.
KILN_CPU_CLONES void mean_block(const float* x,  // [H*W,C] at the first of the channels
                                long long pixels, long long channels, int count,
                                float* y) {  // [count]
  float sum[kBlock] = {};
  for (long long i = 0; i < pixels; ++i) {
    for (int c = 0; c < count; ++c) sum[c] += x[i * channels + c];
  }
  for (int c = 0; c < count; ++c) y[c] = sum[c] / static_cast<float>(pixels);
}

// One image's gradient: its first pixel is computed, the others are copies.
KILN_CPU_CLONES void spread_image(const float* dy,  // [C]
                                  float* dx,        // [H*W,C]
                                  long long pixels, long long channels) {
  for (long long c = 0; c < channels; ++c) dx[c] = dy[c] / static_cast<float>(pixels);
  for (long long i = 1; i < pixels; ++i) std::copy_n(dx, channels, dx + i * channels);
}

void global_avg_pool_fwd(const GlobalAvgPoolProblem& p, const GlobalAvgPoolFwd::Args& a) {
  const long long pixels = 1LL * p.h * p.w;
  const long long blocks = (p.c + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (p.n * pixels * p.c > 4096)
  for (long long i = 0; i < p.n * blocks; ++i) {
    const long long n = i / blocks, c = i % blocks * kBlock;
    mean_block(f32(a.x) + n * pixels * p.c + c, pixels, p.c,
               static_cast<int>(std::min<long long>(kBlock, p.c - c)), f32(a.y) + n * p.c + c);
  }
}

void global_avg_pool_bwd(const GlobalAvgPoolProblem& p, const GlobalAvgPoolBwd::Args& a) {
  const long long pixels = 1LL * p.h * p.w;
#pragma omp parallel for schedule(static) if (p.n * pixels * p.c > 4096)
  for (long long n = 0; n < p.n; ++n) {
    spread_image(f32(a.dy) + n * p.c, f32(a.dx) + n * pixels * p.c, pixels, p.c);
  }
}

}  // namespace

extern const Impl<GlobalAvgPoolFwd> global_avg_pool_fwd_cpu_fast =
    cpu_impl<GlobalAvgPoolFwd, global_avg_pool_fwd>("cpu_fast");
extern const Impl<GlobalAvgPoolBwd> global_avg_pool_bwd_cpu_fast =
    cpu_impl<GlobalAvgPoolBwd, global_avg_pool_bwd>("cpu_fast");

}  // namespace kiln
