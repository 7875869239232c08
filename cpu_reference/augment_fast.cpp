// augment on all cores: a thread owns images. A pixel has 256 values, so each channel's normalisation is a
// table of 256 floats, made once a launch; a row is then look-ups over the columns that show a pixel.
#include <algorithm>
#include <cstdint>

#include "cpu_reference/cpu_support.h"
#include "kernels/augment/augment_geometry.h"

namespace kiln {
namespace {

constexpr int kLevels = 256;

size_t table_bytes(const AugmentProblem& p) { return sizeof(float) * kLevels * p.c; }

// Row h of one output image.
void augment_row(const AugmentProblem& p, const AugmentDraw& draw, int h,
                 const uint8_t* image,  // [H,W,C]
                 const float* table,    // [C,256]
                 float* y) {            // [W,c_stride]
  const int stride = p.y_channels(), row = source_index(p, h + draw.dy, p.h);
  std::fill_n(y, static_cast<long long>(p.w) * stride, 0.0f);
  if (row < 0) return;
  // The crop's columns [begin, end) show pixels: with zeros those inside the image.
  const bool zero = p.pad_mode == PadMode::kZero;
  const int begin = zero ? std::max(0, -draw.dx) : 0, end = zero ? std::min(p.w, p.w - draw.dx) : p.w;
  const uint8_t* source = image + static_cast<long long>(row) * p.w * p.c;
  for (int column = begin; column < end; ++column) {
    const uint8_t* pixel = source + static_cast<long long>(source_index(p, column + draw.dx, p.w)) * p.c;
    float* out = y + static_cast<long long>(draw.flip ? p.w - 1 - column : column) * stride;
    for (int c = 0; c < p.c; ++c) out[c] = table[c * kLevels + pixel[c]];
  }
  if (h < draw.cut_h || h >= draw.cut_h + p.cut) return;
  const int cut_begin = std::max(0, draw.cut_w), cut_end = std::min(p.w, draw.cut_w + p.cut);
  if (cut_begin < cut_end) {
    std::fill_n(y + static_cast<long long>(cut_begin) * stride,
                static_cast<long long>(cut_end - cut_begin) * stride, 0.0f);
  }
}

void augment_fwd(const AugmentProblem& p, const AugmentFwd::Args& a, void* workspace) {
  const StepState& step = *static_cast<const StepState*>(a.step);
  const uint8_t* images = static_cast<const uint8_t*>(a.images);  // [M,H,W,C]
  const int32_t* order = static_cast<const int32_t*>(a.order);    // [M]
  float* table = static_cast<float*>(workspace);                  // [C,256]
  for (int c = 0; c < p.c; ++c) {
    const float mean = f32(a.mean)[c], inv_std = inverse_std(f32(a.std)[c]);
    for (int level = 0; level < kLevels; ++level) {
      table[c * kLevels + level] = normalise(static_cast<uint8_t>(level), mean, inv_std);
    }
  }
  const long long row = static_cast<long long>(p.w) * p.y_channels();
#pragma omp parallel for schedule(static) if (p.n > 1)
  for (int n = 0; n < p.n; ++n) {
    const int32_t source = order[step.batch_offset + n];
    const AugmentDraw draw = draw_augment(p, step, n, source);
    const uint8_t* image = images + static_cast<long long>(source) * p.h * p.w * p.c;
    static_cast<int32_t*>(a.y_labels)[n] = static_cast<const int32_t*>(a.labels)[source];
    for (int h = 0; h < p.h; ++h) augment_row(p, draw, h, image, table, f32(a.y) + (1LL * n * p.h + h) * row);
  }
}

}  // namespace

extern const Impl<AugmentFwd> augment_fwd_cpu_fast =
    cpu_impl<AugmentFwd, table_bytes, augment_fwd>("cpu_fast");

}  // namespace kiln
