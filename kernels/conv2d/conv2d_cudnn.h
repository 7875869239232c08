// What cuDNN can do for a convolution, for the benchmark. Needs no cuDNN header; defined where
// KILN_WITH_CUDNN is.
//
// The configs of the implementation "cudnn" of conv2d.fwd, conv2d.dgrad and conv2d.wgrad:
//   "", "default"  the first plan of the list that cuDNN makes
//   "plan<k>"      the k-th plan of the list; an Error where cuDNN does not make it
//   "best"         every plan is tried once on scratch tensors, the fastest exact one is kept (the fastest of
//   all
//                  where none is exact)
// The list is what cuDNN's heuristics offer (mode B, then A, then fallback), in their order, without the
// engines that break the arithmetic promised (see docs/peers.md); the exact ones come first.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/conv2d/conv2d.h"

namespace kiln {

struct CudnnPlanInfo {
  std::string config;  // "plan3": the implementation is then "cudnn:plan3"
  std::string engine;  // cuDNN's engine index and knobs, "eng34_k2=9_k27=1"
  std::string notes;   // cuDNN's numerical notes, "tensor_core nondeterministic"; "dw_through_bf16"
  bool exact = true;   // sums of small integers come out exact: no FFT, no large Winograd tile, no output
                       // that passes through bf16
  size_t workspace_bytes = 0;
  double us = 0;  // measured, inputs warm; NaN where not measured
};

// The list for a pass ("fwd", "dgrad", "wgrad"), no plan made. Throws Error for an unknown pass or a problem
// that the peer does not support.
std::vector<CudnnPlanInfo> conv2d_cudnn_plans(std::string_view pass, const Conv2dProblem& problem,
                                              const Device& device);

// The same, each made (by several threads, for cuDNN compiles some) and timed on scratch tensors, fastest
// first. Plans that cuDNN does not make or that fail to run are left out, and those that take over three
// times the best.
std::vector<CudnnPlanInfo> conv2d_cudnn_ranked_plans(std::string_view pass, const Conv2dProblem& problem,
                                                     const Device& device);

}  // namespace kiln
