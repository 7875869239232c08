// A product's sum cut into parts: how each part's result lies in the workspace, and the kernel that adds
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/device.h"
#include "kernels/common/dtype.h"
#include "kernels/common/grid.h"

namespace kiln {

// out[rows,columns] as `count` partial results in fp32, each followed by [rows] row sums.
struct LinearSplit {
  int rows = 1, columns = 1, count = 1;
  // Floats from one part to the next.
  size_t stride() const { return (static_cast<size_t>(rows) * columns + rows + 3) / 4 * 4; }
  size_t workspace_bytes() const { return count > 1 ? count * stride() * sizeof(float) : 0; }
};

// Behind the launch that writes the parts, which had better call let_next_start. Adds them in order:
// out[rows,columns] of dtype (kF32 or kBF16), plus bias[columns] where not null, and row_sums[rows] where not
// null.
void linear_sum_splits(const float* partial, const LinearSplit& split, const float* bias, void* out,
                       DType dtype, float* row_sums, Stream stream);

// Multiply-adds up to which a product is bound by latency rather than by tensor cores.
constexpr double kLinearSmallMacs = 1 << 27;

// The longest part that tensor cores should sum in one go: they truncate as they add, an error that grows
// with the length of the chain times the size of the sum, against bounds that grow with `terms`, the whole
// sum's. In a bf16 result much of it drowns in the rounding. `shortest`: what is harmless in fp32 sums of
// 8192 terms.
inline int linear_longest_chain(int terms, int shortest, bool f32_out) {
  return static_cast<int>((f32_out ? 1 : 3) * shortest * std::max(1.0, std::sqrt(terms / 8192.0)));
}

// The fewest parts of `steps` stages of `step` terms that keep within linear_longest_chain.
inline int linear_least_splits(int terms, int step, int shortest, bool f32_out) {
  const int steps = ceil_div(terms, step);
  return ceil_div(steps, std::max(1, linear_longest_chain(terms, shortest, f32_out) / step));
}

// Most parts that are worth their memory: 128 MiB of partial results, 64 parts. linear_least_splits may want
// more: the chain's length is a matter of correctness.
inline int linear_most_splits(int rows, int columns) {
  return static_cast<int>(std::clamp((32LL << 20) / (1LL * rows * columns), 1LL, 64LL));
}

}  // namespace kiln
