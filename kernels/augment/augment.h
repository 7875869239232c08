// augment: from the resident uint8 images to the network's input, one batch: gather, pad-and-crop, flip,
// cutout, normalise, convert. Without pad, flip and cut it is the plain loader that evaluation uses.
//
// Image i of the batch is images[order[batch_offset + i]]; batch_offset, seed and epoch come from StepState,
// and batch_offset + n <= m: a batch never wraps. Its draws are d = philox(seed, kAugment, k) and e =
// philox(seed, kAugment, k, sub = 1) with the 64-bit counter k = epoch * m + batch_offset + i, and
// below(bits, n) = uniform_below of philox.h:
//   crop    dy = below(d[0], 2*pad+1) - pad, dx = below(d[1], 2*pad+1) - pad: pixel (h, w) of
//           the crop is pixel (h+dy, w+dx) of the image. Outside the image, by pad_mode, zero: it is 0 after
//           normalisation (padding with the mean); reflect: the image goes on as its mirror image, the border
//           pixel not repeated, so that row -1 is row 1, row H is row H-2, columns likewise
//   flip    random: the crop is mirrored left-right where d[2] >= 2^31, so that output (h, w) is the crop's
//           (h, W-1-w); alternate: where epoch plus the image's own bit is odd, the bit being 1 where f[0] >=
//           2^31 with f = philox(seed, kAugment, j, sub = 2) and j = order[batch_offset + i]: each image is
//           seen both ways in every two epochs
//   cutout  a cut x cut square of zeros (after normalisation) in the output, around (below(e[0], H),
//           below(e[1], W)): rows centre - cut/2 ... centre - cut/2 + cut - 1, columns likewise, clipped
//   y       = (pixel / 255 - mean[c]) / std[c], computed in fp32 as fma(pixel, 1/255, -mean[c]) * (1/std[c]),
//   then
//           rounded to y's type: the same bits on every device
// The formulas as code are in augment_geometry.h, which the CPU and the CUDA implementations share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"
#include "kernels/common/step_state.h"
#include "kernels/common/tensor_spec.h"

namespace kiln {

enum class Flip { kNone, kRandom, kAlternate };
// "none", "random", "alternate"; throws Error for any other.
Flip flip_from_name(const std::string& name);
const char* name_of(Flip);

enum class PadMode { kZero, kReflect };
// "zero", "reflect"; throws Error for any other.
PadMode pad_mode_from_name(const std::string& name);
const char* name_of(PadMode);

struct AugmentProblem {
  int n = 1, h = 1, w = 1, c = 1;  // one batch
  long long m = 1;                 // images in the data set (and entries in order)
  int pad = 0;                     // pad-and-crop by up to this many pixels
  PadMode pad_mode = PadMode::kZero;
  Flip flip = Flip::kNone;
  int cut = 0;       // side of the cutout square, 0: none
  int c_stride = 0;  // channels from one pixel of y to the next, 0: c; channels beyond c are written as zero
  DType dtype = DType::kF32;  // of y
  int y_channels() const { return c_stride ? c_stride : c; }
  // "n512_h32_w32_c3_m50000[_pad4[_reflect]][_flip|_altflip][_cut8][_cs8]"; w defaults to h.
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
  static double compulsory_bytes(const Problem& p);  // one batch's: the data set is not read whole
  static Table<AugmentFwd> impls(DeviceKind);
  static void derive(const Problem&, HostTensors&);  // step, order, mean, std
};

}  // namespace kiln
