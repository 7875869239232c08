// The one place where kiln calls a BLAS library.
#pragma once

namespace kiln {

// C = alpha * op(A) * op(B) + beta * C, all row-major, on the calling thread alone: parallelism belongs to
// the caller, whose OpenMP threads may call this at the same time. op(A) is [m,k], op(B) is [k,n], C is
// [m,n]. ta: A is stored [k,m]; tb: B is stored [n,k]; ld*: elements from one stored row to the next. With
// beta = 0 C is not read. The order of summation depends on the shape alone, so that equal calls give equal
// bits.
void sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
           int ldb, float beta, float* c, int ldc);

}  // namespace kiln
