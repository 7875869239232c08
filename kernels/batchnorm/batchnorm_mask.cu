// The activation's mask: bit j of mask[m,b] = 0 < y[m,8b+j] (relu6: and y < 6), for 8b+j < C; other bits are
// 0.
//
// A thread owns one byte and loops with the grid's stride; it reads up to 8 neighbouring values of y one by
// one, since rows of an odd channel count are not aligned. Used behind kernels whose threads own single
// channels, whose y is still in L2. No shared memory, any shape, deterministic. Mirrors
// cpu_reference/batchnorm_naive.cpp.
#include "kernels/batchnorm/batchnorm_mask.h"

#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void batchnorm_mask_kernel(
    const T* __restrict__ y,           // [M,C]
    unsigned char* __restrict__ mask,  // [M,ceil(C/8)]
    int bytes, int channels, BatchnormClamp clamp) {
  const int row_bytes = (channels + 7) / 8;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < bytes; i += stride) {
    const int m = static_cast<int>(i) / row_bytes, c = static_cast<int>(i) % row_bytes * 8;
    const T* from = y + static_cast<size_t>(m) * channels + c;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (c + j < channels && clamp.passes(to_float(from[j]))) bits |= 1u << j;
    }
    mask[i] = static_cast<unsigned char>(bits);
  }
}

template <class T>
void launch(const BatchnormProblem& p, const void* y, void* mask, Stream stream) {
  const int bytes = static_cast<int>(p.per_channel() * p.mask_bytes_per_pixel());
  batchnorm_mask_kernel<T><<<grid_for(bytes, kThreads, 1 << 16), kThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(y), static_cast<unsigned char*>(mask), bytes, p.c, batchnorm_clamp(p.act));
  check_launch("batchnorm_mask_kernel");
}

}  // namespace

void launch_batchnorm_mask(const BatchnormProblem& p, const void* y, void* mask, Stream stream) {
  (p.dtype == DType::kBF16 ? launch<bf16> : launch<float>)(p, y, mask, stream);
}

}  // namespace kiln
