#include "cpu_reference/blas.h"

#include <cblas.h>

namespace kiln {
namespace {

// OpenBLAS's own pool would compete with the callers' threads. The setting is the process's; set on the first
// call, before any product.
void use_calling_thread_alone() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

void sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
           int ldb, float beta, float* c, int ldc) {
  use_calling_thread_alone();
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha,
              a, lda, b, ldb, beta, c, ldc);
}

}  // namespace kiln
