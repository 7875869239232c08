// global_max_pool on all cores: a thread owns blocks of channels of an image (forward) or whole images
// (backward); the inner loops run over channels and are vectorised.
#include <algorithm>
#include <cstdint>

#include "cpu_reference/cpu_support.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

constexpr int kBlock = 64;  // channels whose maxima and positions stay in registers or the L1 cache

// Maxima of `count` channels of one image: a later NaN replaces the best, nothing replaces a NaN but a NaN.
KILN_CPU_CLONES void max_block(const float* x,  // [H*W,C] at the first of the channels
                               int pixels, long long channels, int count,
                               float* y,        // [count]
                               int32_t* arg) {  // [count] or null
  float best[kBlock];
  int32_t position[kBlock] = {};
  std::copy_n(x, count, best);
  for (int i = 1; i < pixels; ++i) {
    const float* pixel = x + i * channels;
    for (int c = 0; c < count; ++c) {
      const bool better = (pixel[c] > best[c]) | (pixel[c] != pixel[c]);
      best[c] = better ? pixel[c] : best[c];
      position[c] = better ? i : position[c];
    }
  }
  std::copy_n(best, count, y);
  if (arg) std::copy_n(position, count, arg);
}

KILN_CPU_CLONES void scatter_image(const float* dy,     // [C]
                                   const int32_t* arg,  // [C]
                                   float* dx,           // [H*W,C]
                                   int pixels, int channels) {
  for (int i = 0; i < pixels; ++i) {
    float* pixel = dx + 1LL * i * channels;
    for (int c = 0; c < channels; ++c) pixel[c] = arg[c] == i ? dy[c] : 0.0f;
  }
}

void global_max_pool_fwd(const GlobalMaxPoolProblem& p, const GlobalMaxPoolFwd::Args& a) {
  const int pixels = p.h * p.w;
  const long long blocks = (p.c + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (1LL * p.n * pixels * p.c > 4096)
  for (long long i = 0; i < p.n * blocks; ++i) {
    const long long n = i / blocks, c = i % blocks * kBlock;
    max_block(f32(a.x) + n * pixels * p.c + c, pixels, p.c,
              static_cast<int>(std::min<long long>(kBlock, p.c - c)), f32(a.y) + n * p.c + c,
              a.arg ? static_cast<int32_t*>(a.arg) + n * p.c + c : nullptr);
  }
}

void global_max_pool_bwd(const GlobalMaxPoolProblem& p, const GlobalMaxPoolBwd::Args& a) {
  const int pixels = p.h * p.w;
#pragma omp parallel for schedule(static) if (1LL * p.n * pixels * p.c > 4096)
  for (long long n = 0; n < p.n; ++n) {
    scatter_image(f32(a.dy) + n * p.c, static_cast<const int32_t*>(a.arg) + n * p.c,
                  f32(a.dx) + n * pixels * p.c, pixels, p.c);
  }
}

}  // namespace

extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_cpu_fast =
    cpu_impl<GlobalMaxPoolFwd, global_max_pool_fwd>("cpu_fast");
extern const Impl<GlobalMaxPoolBwd> global_max_pool_bwd_cpu_fast =
    cpu_impl<GlobalMaxPoolBwd, global_max_pool_bwd>("cpu_fast");

}  // namespace kiln
