// augment fwd: y[n,h,w,c] = normalised pixel of image order[batch_offset + n] under the image's crop, flip
// and cutout; y_labels[n] = its label (the formulas are in augment.h and augment_geometry.h).
//
// The first rung: a thread owns one output pixel, makes its image's draws itself and loops over the channels;
// the grid strides over the batch. No shared memory, any shape, deterministic. Mirrors
// cpu_reference/augment_naive.cpp bit by bit.
#include "kernels/augment/augment_geometry.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 16;

template <class T>
__global__ __launch_bounds__(kThreads) void augment_fwd_naive_kernel(
    const StepState* __restrict__ step,
    const uint8_t* __restrict__ images,  // [M,H,W,C]
    const int32_t* __restrict__ labels,  // [M]
    const int32_t* __restrict__ order,   // [M]
    const float* __restrict__ mean,      // [C]
    const float* __restrict__ std,       // [C]
    T* __restrict__ y,                   // [N,H,W,channels]
    int32_t* __restrict__ y_labels,      // [N]
    int pixels, int channels, const __grid_constant__ AugmentProblem p) {
  const int image_pixels = p.h * p.w;
  const long long stride = 1LL * gridDim.x * kThreads;
  for (long long i = 1LL * blockIdx.x * kThreads + threadIdx.x; i < pixels; i += stride) {
    const int n = i / image_pixels;
    const int at = i % image_pixels;
    const int32_t source = order[step->batch_offset + n];
    const AugmentDraw draw = draw_augment(p, *step, n, source);
    const int pixel = source_pixel(p, draw, at / p.w, at % p.w);
    const uint8_t* image = images + static_cast<size_t>(source) * image_pixels * p.c;
    for (int c = 0; c < channels; ++c) {
      float v = 0.0f;
      if (pixel >= 0 && c < p.c) v = normalise(image[pixel * p.c + c], mean[c], inverse_std(std[c]));
      y[i * channels + c] = from_float<T>(v);
    }
    if (at == 0) y_labels[n] = labels[source];
  }
}

template <class T>
Plan<AugmentFwd::Args> plan(const AugmentProblem& p) {
  return make_plan<AugmentFwd::Args>(0, [p](const AugmentFwd::Args& a, void*, Stream stream) {
    const int pixels = p.n * p.h * p.w;
    augment_fwd_naive_kernel<T>
        <<<grid_for(pixels, kThreads, kMostBlocks), kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const StepState*>(a.step), static_cast<const uint8_t*>(a.images),
            static_cast<const int32_t*>(a.labels), static_cast<const int32_t*>(a.order),
            static_cast<const float*>(a.mean), static_cast<const float*>(a.std), static_cast<T*>(a.y),
            static_cast<int32_t*>(a.y_labels), pixels, p.y_channels(), p);
    check_launch("augment_fwd_naive_kernel");
  });
}

}  // namespace

extern const Impl<AugmentFwd> augment_fwd_naive = {
    .name = "naive",
    .supports = [](const AugmentProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const AugmentProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
        }};

}  // namespace kiln
