// augment fwd: y[n,h,w,c] = normalised pixel of image order[batch_offset + n] under the image's crop, flip
// and cutout; y_labels[n] = its label (the formulas are in augment.h and augment_geometry.h).
//
// A block owns 512 vectors of one image's output, a vector being V elements: 16 bytes where they divide an
// image, else one element. One thread makes the image's draws for all; each thread then owns two vectors,
// gathers their bytes (neighbouring threads read neighbouring pixels) and stores each vector with one access,
// padding channels included. Shared memory: 8 bytes a channel of statistics, 8 KiB, and the draws. Needs c <=
// 1024 and 16-byte aligned tensors (make_plan checks). Deterministic. Mirrors cpu_reference/augment_naive.cpp
// bit by bit.
#include "kernels/augment/augment_geometry.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 2 * kThreads;  // vectors of a block
constexpr int kMostChannels = 1024;

// An image of the output: `channels` from one pixel to the next, `vectors` in all, `tiles` blocks.
struct Layout {
  int channels, vectors, tiles;
};

struct Statistics {
  float mean[kMostChannels], inv_std[kMostChannels];
};

// Vector v of the image. kOnePixel: channels is a multiple of V, so that a vector never leaves its pixel.
template <class T, int V, bool kOnePixel>
__device__ __forceinline__ Vec<T, V> make_vector(const AugmentProblem& p, const Layout& l,
                                                 const AugmentDraw& draw, const Statistics& statistics,
                                                 const uint8_t* __restrict__ image,  // [H,W,C]
                                                 int v) {
  const int first_pixel = v * V / l.channels;
  int c = v * V - first_pixel * l.channels;
  int h = first_pixel / p.w;
  int w = first_pixel - h * p.w;
  int pixel = source_pixel(p, draw, h, w);
  uint8_t bytes[V];
  int channel[V];  // -1: the element is zero
#pragma unroll
  for (int j = 0; j < V; ++j) {
    channel[j] = pixel >= 0 && c < p.c ? c : -1;
    bytes[j] = channel[j] >= 0 ? image[pixel * p.c + c] : 0;
    ++c;
    if (!kOnePixel && c == l.channels) {
      c = 0;
      if (++w == p.w) {
        w = 0;
        ++h;
      }
      pixel = source_pixel(p, draw, h, w);
    }
  }
  Vec<T, V> out;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int k = max(channel[j], 0);
    const float value = normalise(bytes[j], statistics.mean[k], statistics.inv_std[k]);
    out.set(j, channel[j] >= 0 ? value : 0.0f);
  }
  return out;
}

template <class T, int V, bool kOnePixel>
__global__ __launch_bounds__(kThreads) void augment_fwd_vectorized_kernel(
    const StepState* __restrict__ step,
    const uint8_t* __restrict__ images,  // [M,H,W,C]
    const int32_t* __restrict__ labels,  // [M]
    const int32_t* __restrict__ order,   // [M]
    const float* __restrict__ mean,      // [C]
    const float* __restrict__ std,       // [C]
    T* __restrict__ y,                   // [N,H,W,channels]
    int32_t* __restrict__ y_labels,      // [N]
    const __grid_constant__ AugmentProblem p, const __grid_constant__ Layout l) {
  __shared__ Statistics statistics;
  __shared__ AugmentDraw shared_draw;
  __shared__ int32_t shared_source;
  const int n = static_cast<int>(blockIdx.x) / l.tiles;
  const int tile = static_cast<int>(blockIdx.x) - n * l.tiles;
#pragma unroll 1
  for (int c = threadIdx.x; c < p.c; c += kThreads) {
    statistics.mean[c] = mean[c];
    statistics.inv_std[c] = inverse_std(std[c]);
  }
  if (threadIdx.x == 0) {
    const int32_t source = order[step->batch_offset + n];
    shared_draw = draw_augment(p, *step, n, source);
    shared_source = source;
    if (tile == 0) y_labels[n] = labels[source];
  }
  __syncthreads();  // statistics, draw and source are in place

  const AugmentDraw draw = shared_draw;
  const uint8_t* image = images + static_cast<size_t>(shared_source) * p.h * p.w * p.c;
  T* out = y + static_cast<size_t>(n) * l.vectors * V;
#pragma unroll
  for (int k = 0; k < kTile / kThreads; ++k) {
    const int v = tile * kTile + k * kThreads + static_cast<int>(threadIdx.x);
    if (v >= l.vectors) return;
    make_vector<T, V, kOnePixel>(p, l, draw, statistics, image, v).store(out + static_cast<size_t>(v) * V);
  }
}

template <class T, int V, bool kOnePixel>
Plan<AugmentFwd::Args> plan(const AugmentProblem& p) {
  Layout l = {.channels = p.y_channels(), .vectors = p.h * p.w * p.y_channels() / V, .tiles = 0};
  l.tiles = ceil_div(l.vectors, kTile);
  return make_plan<AugmentFwd::Args>(0, [p, l](const AugmentFwd::Args& a, void*, Stream stream) {
    augment_fwd_vectorized_kernel<T, V, kOnePixel>
        <<<grid_for(1LL * p.n * l.tiles, 1), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const StepState*>(a.step), static_cast<const uint8_t*>(a.images),
            static_cast<const int32_t*>(a.labels), static_cast<const int32_t*>(a.order),
            static_cast<const float*>(a.mean), static_cast<const float*>(a.std), static_cast<T*>(a.y),
            static_cast<int32_t*>(a.y_labels), p, l);
    check_launch("augment_fwd_vectorized_kernel");
  });
}

template <class T>
Plan<AugmentFwd::Args> plan_for(const AugmentProblem& p) {
  constexpr int V = kVec16<T>;
  if (p.y_channels() % V == 0) return plan<T, V, true>(p);
  if (1LL * p.h * p.w * p.y_channels() % V == 0) return plan<T, V, false>(p);
  return plan<T, 1, true>(p);
}

}  // namespace

extern const Impl<AugmentFwd> augment_fwd_vectorized = {
    .name = "vectorized",
    .supports =
        [](const AugmentProblem& p, const Device&) {
          return Support::require(p.c <= kMostChannels, "c must be at most 1024");
        },
    .plan =
        [](const AugmentProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan_for<bf16>(p) : plan_for<float>(p);
        }};

}  // namespace kiln
