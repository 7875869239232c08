// linear on all cores: each thread multiplies its own slice of the output with BLAS. No sum crosses threads:
// fwd and dgrad are cut along the rows (fwd along the outputs where there are fewer rows than threads), wgrad
// along the input features.
#include <algorithm>

#include "cpu_reference/blas.h"
#include "cpu_reference/cpu_support.h"
#include "kernels/linear/linear.h"

namespace kiln {
namespace {

// Splits [0, count) over the threads unless the whole product is too small, and calls body(begin, length).
template <class Body>
void parallel_slices(int count, double macs, const Body& body) {
  constexpr double kLeastMacs = 1 << 15;  // below this a thread is not worth waking
  const long long most = std::min<long long>(cpu_device().threads, count);
  const long long parts = std::max(1LL, std::min(most, static_cast<long long>(macs / kLeastMacs)));
#pragma omp parallel for schedule(static) if (parts > 1)
  for (long long i = 0; i < parts; ++i) {
    const int begin = static_cast<int>(count * i / parts), end = static_cast<int>(count * (i + 1) / parts);
    body(begin, end - begin);
  }
}

// sums[j] = sum_i rows[i * columns + j]
KILN_CPU_CLONES void column_sums(const float* rows, int count, int columns, float* sums) {
  std::fill_n(sums, columns, 0.0f);
  for (int i = 0; i < count; ++i) {
    const float* row = rows + static_cast<size_t>(i) * columns;
    for (int j = 0; j < columns; ++j) sums[j] += row[j];
  }
}

void linear_fwd(const LinearProblem& p, const LinearFwd::Args& a) {
  const float* x = f32(a.x);        // [N,C]
  const float* w = f32(a.w);        // [K,C]
  const float* bias = f32(a.bias);  // [K], null without bias
  float* y = f32(a.y);              // [N,K]
  // The slice of rows [n0, n0+rows) and outputs [k0, k0+outputs).
  const auto slice = [&](int n0, int rows, int k0, int outputs) {
    const float* x0 = x + static_cast<size_t>(n0) * p.c;
    float* y0 = y + static_cast<size_t>(n0) * p.k + k0;
    for (int i = 0; bias && i < rows; ++i) std::copy_n(bias + k0, outputs, y0 + static_cast<size_t>(i) * p.k);
    sgemm(false, true, rows, outputs, p.c, 1, x0, p.c, w + static_cast<size_t>(k0) * p.c, p.c, bias ? 1 : 0,
          y0, p.k);
  };
  if (p.n >= cpu_device().threads) {
    parallel_slices(p.n, p.macs(), [&](int begin, int rows) { slice(begin, rows, 0, p.k); });
  } else {
    parallel_slices(p.k, p.macs(), [&](int begin, int outputs) { slice(0, p.n, begin, outputs); });
  }
}

void linear_dgrad(const LinearProblem& p, const LinearDgrad::Args& a) {
  const float* dy = f32(a.dy);  // [N,K]
  const float* w = f32(a.w);    // [K,C]
  float* dx = f32(a.dx);        // [N,C]
  parallel_slices(p.n, p.macs(), [&](int begin, int rows) {
    sgemm(false, false, rows, p.c, p.k, 1, dy + static_cast<size_t>(begin) * p.k, p.k, w, p.c, 0,
          dx + static_cast<size_t>(begin) * p.c, p.c);
  });
}

void linear_wgrad(const LinearProblem& p, const LinearWgrad::Args& a) {
  const float* dy = f32(a.dy);  // [N,K]
  const float* x = f32(a.x);    // [N,C]
  float* dw = f32(a.dw);        // [K,C]
  parallel_slices(p.c, p.macs(), [&](int begin, int columns) {
    sgemm(true, false, p.k, columns, p.n, 1, dy, p.k, x + begin, p.c, 0, dw + begin, p.c);
  });
  if (a.dbias) column_sums(dy, p.n, p.k, f32(a.dbias));
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_cpu_fast = cpu_impl<LinearFwd, linear_fwd>("cpu_fast");
extern const Impl<LinearDgrad> linear_dgrad_cpu_fast = cpu_impl<LinearDgrad, linear_dgrad>("cpu_fast");
extern const Impl<LinearWgrad> linear_wgrad_cpu_fast = cpu_impl<LinearWgrad, linear_wgrad>("cpu_fast");

}  // namespace kiln
