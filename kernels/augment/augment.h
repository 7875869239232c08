// augment: from the resident uint8 images to the network's input, one batch: gather, pad-and-crop, flip, cutout,
// normalise, convert. Without pad, flip and cut it is the plain loader that evaluation uses.
//
// Image i of the batch is images[order[batch_offset + i]]; batch_offset, seed and epoch come from StepState.
// Its draws are d = philox(seed, kAugment, epoch * m + batch_offset + i):
//   crop    dy = below(d[0] & 0xffff0000 as 32 bits, 2*pad+1) - pad, dx likewise from d[1]: source pixel
//           (h+dy, w+dx'), outside the image: 0 after normalisation (padding with the mean)
//   flip    mirrored left-right where flip and d[2] >= 2^31 (the crop is taken first, then mirrored: dx' = dx)
//   cutout  a cut x cut square of zeros (after normalisation) at centre (below(d3.v[0], h), below(d3.v[1], w)),
//           d3 = philox(..., sub = 1), clipped at the borders, rows centre - cut/2 ... centre - cut/2 + cut - 1
//   y       = (pixel / 255 - mean[c]) / std[c], computed as fp32 (pixel * (1/255) - mean) * inv_std
// The exact order is in augment_geometry.h, which the CPU and the CUDA code share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/step_state.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

struct AugmentProblem {
  int n = 1, h = 1, w = 1, c = 1;  // one batch
  long long m = 1;                 // images in the data set (and entries in order)
  int pad = 0;                     // pad-and-crop by up to this many pixels
  bool flip = false;
  int cut = 0;       // side of the cutout square, 0: none
  int c_stride = 0;  // channels from one pixel of y to the next, 0: c; channels beyond c are written as zero
  DType dtype = DType::kF32;  // of y
  int y_channels() const { return c_stride ? c_stride : c; }
  // "n512_h32_w32_c3_m50000[_pad4][_flip][_cut8][_cs8]"; w defaults to h.
  std::string str() const;
  static AugmentProblem parse(std::string_view text, DType dtype);
  void validate() const;
};

struct AugmentFwd {
  static constexpr const char* kOp = "augment";
  static constexpr const char* kPass = "fwd";
  using Problem = AugmentProblem;
  struct Args {
    const void* step;    // StepState
    const void* images;  // [M,H,W,C] uint8
    const void* labels;  // [M] int32
    const void* order;   // [M] int32, a permutation of the images
    const void* mean;    // [C] fp32, in units of the pixel range 0..1
    const void* std;     // [C] fp32
    void* y;             // [N,H,W,c_stride] dtype
    void* y_labels;      // [N] int32
  };
  static std::vector<TensorSpec> tensors(const Problem&);
  static double flops(const Problem& p) { return 3.0 * p.n * p.h * p.w * p.c; }
  static Table<AugmentFwd> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // step, order, mean, std
};

}  // namespace kiln
