// augment, the judge: the formulas of augment_geometry.h, pixel by pixel.
#include <cstdint>

#include "cpu_reference/cpu_support.h"
#include "kernels/augment/augment_geometry.h"

namespace kiln {
namespace {

void augment_fwd(const AugmentProblem& p, const AugmentFwd::Args& a) {
  const StepState& step = *static_cast<const StepState*>(a.step);
  const uint8_t* images = static_cast<const uint8_t*>(a.images);  // [M,H,W,C]
  const int32_t* labels = static_cast<const int32_t*>(a.labels);  // [M]
  const int32_t* order = static_cast<const int32_t*>(a.order);    // [M]
  const float* mean = f32(a.mean);                                // [C]
  const float* std = f32(a.std);                                  // [C]
  float* y = f32(a.y);                                            // [N,H,W,c_stride]
  int32_t* y_labels = static_cast<int32_t*>(a.y_labels);          // [N]
  for (int n = 0; n < p.n; ++n) {
    const int32_t source = order[step.batch_offset + n];
    const AugmentDraw draw = draw_augment(p, step, n, source);
    const uint8_t* image = images + static_cast<long long>(source) * p.h * p.w * p.c;
    y_labels[n] = labels[source];
    for (int h = 0; h < p.h; ++h) {
      for (int w = 0; w < p.w; ++w) {
        const int pixel = source_pixel(p, draw, h, w);
        for (int c = 0; c < p.y_channels(); ++c) {
          *y++ =
              pixel >= 0 && c < p.c ? normalise(image[pixel * p.c + c], mean[c], inverse_std(std[c])) : 0.0f;
        }
      }
    }
  }
}

}  // namespace

extern const Impl<AugmentFwd> augment_fwd_cpu_naive = cpu_impl<AugmentFwd, augment_fwd>("cpu_naive");

}  // namespace kiln
