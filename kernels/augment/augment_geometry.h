// augment's formulas as code that the CPU and the CUDA implementations share: an image's draws, the pixel
// that an output pixel comes from, and the normalisation. All integer arithmetic but the last, which is
// written so that no compiler may contract it differently: host and device give the same bits.
#pragma once

#include <cmath>

#include "kernels/augment/augment.h"
#include "kernels/common/philox.h"

namespace kiln {

// What chance decides for one image.
struct AugmentDraw {
  int dy, dx;        // offset of the crop
  bool flip;         // mirrored left-right
  int cut_h, cut_w;  // first row and column of the cutout square, may be negative
};

// Image i of the batch, which is image `source` of the data set.
KILN_HOST_DEVICE inline AugmentDraw draw_augment(const AugmentProblem& p, const StepState& step, int i,
                                                 int32_t source) {
  AugmentDraw draw = {0, 0, false, 0, 0};
  const uint64_t counter =
      static_cast<uint64_t>(step.epoch) * static_cast<uint64_t>(p.m) + step.batch_offset + i;
  if (p.pad || p.flip == Flip::kRandom) {
    const Philox4 d = philox(step.seed, PhiloxStream::kAugment, counter);
    const uint32_t offsets = 2u * static_cast<uint32_t>(p.pad) + 1u;
    draw.dy = static_cast<int>(uniform_below(d.v[0], offsets)) - p.pad;
    draw.dx = static_cast<int>(uniform_below(d.v[1], offsets)) - p.pad;
    draw.flip = p.flip == Flip::kRandom && d.v[2] >= 0x80000000u;
  }
  if (p.flip == Flip::kAlternate) {
    const Philox4 f = philox(step.seed, PhiloxStream::kAugment, static_cast<uint64_t>(source), 2);
    draw.flip = ((step.epoch + (f.v[0] >> 31)) & 1u) != 0;
  }
  if (p.cut) {
    const Philox4 e = philox(step.seed, PhiloxStream::kAugment, counter, 1);
    draw.cut_h = static_cast<int>(uniform_below(e.v[0], static_cast<uint32_t>(p.h))) - p.cut / 2;
    draw.cut_w = static_cast<int>(uniform_below(e.v[1], static_cast<uint32_t>(p.w))) - p.cut / 2;
  }
  return draw;
}

// The row (column) of an image of `size` rows that row `at` of its padded self shows; -1: none.
KILN_HOST_DEVICE inline int source_index(const AugmentProblem& p, int at, int size) {
  if (at >= 0 && at < size) return at;
  if (p.pad_mode == PadMode::kZero) return -1;
  return at < 0 ? -at : 2 * (size - 1) - at;  // pad < size: once is enough
}

// The pixel of the source image, h*W + w, that output pixel (h, w) shows; -1: none, the output is zero.
KILN_HOST_DEVICE inline int source_pixel(const AugmentProblem& p, const AugmentDraw& draw, int h, int w) {
  const bool cut = h >= draw.cut_h && h < draw.cut_h + p.cut && w >= draw.cut_w && w < draw.cut_w + p.cut;
  const int row = source_index(p, h + draw.dy, p.h);
  const int column = source_index(p, (draw.flip ? p.w - 1 - w : w) + draw.dx, p.w);
  return row >= 0 && column >= 0 && !cut ? row * p.w + column : -1;
}

KILN_HOST_DEVICE inline float inverse_std(float std) { return 1.0f / std; }

KILN_HOST_DEVICE inline float normalise(unsigned char pixel, float mean, float inv_std) {
  return fmaf(static_cast<float>(pixel), 1.0f / 255.0f, -mean) * inv_std;
}

}  // namespace kiln
