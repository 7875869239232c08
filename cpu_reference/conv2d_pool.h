// max2 of conv2d fwd, composed of the convolution and max_pool2d: what the naive and the fast implementation
// share.
#pragma once

#include "cpu_reference/cpu_support.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {

inline Conv2dProblem conv2d_unpooled(const Conv2dProblem& p) {
  Conv2dProblem unpooled = p;
  unpooled.pool = unpooled.pool_arg = false;
  return unpooled;
}

inline MaxPool2dProblem conv2d_max2(const Conv2dProblem& p) {
  return {.n = p.n,
          .h = p.p(),
          .w = p.q(),
          .c = p.k,
          .arg = p.pool_arg ? PoolArg::kArg2 : PoolArg::kNone,
          .dtype = p.dtype};
}

// Bytes of what the convolution writes before max2, ahead of its own workspace.
inline size_t conv2d_unpooled_bytes(const Conv2dProblem& p) {
  constexpr size_t kLine = 64;
  const size_t bytes = sizeof(float) * p.n * p.p() * p.q() * p.k;
  return p.pool ? (bytes + kLine - 1) / kLine * kLine : 0;
}

// `convolve(problem, args, workspace)` runs a problem without max2.
template <class Convolve>
void conv2d_fwd_with_pool(const Conv2dProblem& p, const Conv2dFwd::Args& a, void* workspace,
                          const Impl<MaxPool2dFwd>& pool, const Convolve& convolve) {
  if (!p.pool) return convolve(p, a, workspace);
  Conv2dFwd::Args unpooled = a;
  unpooled.y = workspace;  // [N,P,Q,K]
  convolve(conv2d_unpooled(p), unpooled, static_cast<char*>(workspace) + conv2d_unpooled_bytes(p));
  pool.plan(conv2d_max2(p), cpu_device(), "")
      .bind({.x = workspace, .y = a.y, .arg = p.pool_arg ? a.arg : nullptr}, nullptr)
      .launch(nullptr);
}

}  // namespace kiln
