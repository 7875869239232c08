// How the fast batchnorm splits [N*H*W] rows of C channels over threads and caches, and what it does with a
// row's values behind the normalisation.
#pragma once

#include <algorithm>

#include "cpu_reference/activation_lanes.h"
#include "cpu_reference/cpu_support.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"

namespace kiln {

constexpr int kBatchnormBlockFloats = 8192;  // a block's part of x: 32 KiB

inline long long batchnorm_block_rows(const BatchnormProblem& p) {
  return std::max(16, kBatchnormBlockFloats / p.c);
}

// Parts of the rows, a function of the problem and the thread count alone.
inline int batchnorm_parts(const BatchnormProblem& p) {
  const long long worth = p.per_channel() * p.c / kBatchnormBlockFloats;
  return static_cast<int>(std::max(1LL, std::min({worth, p.per_channel(), 1LL * cpu_device().threads})));
}
inline long long batchnorm_part_begin(const BatchnormProblem& p, int part) {
  return p.per_channel() * part / batchnorm_parts(p);
}

// y of u, and the gradient to u.
struct BatchnormClampLane {
  BatchnormClamp clamp;
  float fwd(float u) const { return clamp.activate(u); }
  float bwd(float dy, float u) const { return clamp.passes(u) ? dy : 0.0f; }
};

// Calls body(lane) with BatchnormClampLane, GeluLane or SiluLane.
template <class Body>
void with_batchnorm_lane(BatchnormAct act, const Body& body) {
  if (act == BatchnormAct::kGelu) return body(GeluLane{});
  if (act == BatchnormAct::kSilu) return body(SiluLane{});
  body(BatchnormClampLane{batchnorm_clamp(act)});
}

}  // namespace kiln
