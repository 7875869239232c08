// Bandwidth probes: y[i] = x[i], y[i] = 0, and sum x[i], 16 bytes a thread and access.
//
// Copy and write: a block owns 16 KiB, a thread four 16-byte vectors, 4 KiB apart, so that four accesses are
// in flight and every warp access is one line of 512 contiguous bytes. Read: blocks step through x with the
// grid's stride, eight loads in flight a thread. No shared memory. Sizes are multiples of what a block owns
// (ceiling_kernels.h).
#include "bench/ceiling_kernels.h"
#include "kernels/common/check.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;      // a thread: copy and write
constexpr int kReadVectors = 8;  // a thread and step: read

__global__ __launch_bounds__(kThreads) void probe_copy_kernel(const uint4* __restrict__ x,  // [bytes / 16]
                                                              uint4* __restrict__ y) {      // [bytes / 16]
  const size_t first = static_cast<size_t>(blockIdx.x) * kThreads * kVectors + threadIdx.x;
  uint4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) v[i] = __ldcs(x + first + i * kThreads);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) __stcs(y + first + i * kThreads, v[i]);
}

__global__ __launch_bounds__(kThreads) void probe_write_kernel(uint4* __restrict__ y) {  // [bytes / 16]
  const size_t first = static_cast<size_t>(blockIdx.x) * kThreads * kVectors + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) __stcs(y + first + i * kThreads, make_uint4(0, 0, 0, 0));
}

__global__ __launch_bounds__(kThreads) void probe_read_kernel(const uint4* __restrict__ x,  // [vectors]
                                                              uint4* __restrict__ sink,     // [1]
                                                              size_t vectors) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads * kReadVectors;
  unsigned sum = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads * kReadVectors + threadIdx.x; i < vectors;
       i += stride) {
    uint4 v[kReadVectors];
#pragma unroll
    for (int j = 0; j < kReadVectors; ++j) v[j] = __ldcs(x + i + j * kThreads);
#pragma unroll
    for (int j = 0; j < kReadVectors; ++j) sum |= v[j].x | v[j].y | v[j].z | v[j].w;
  }
  if (sum == 0xdeadbeefu) *sink = make_uint4(sum, sum, sum, sum);
}

unsigned blocks_for(size_t bytes) { return static_cast<unsigned>(bytes / (16 * kThreads * kVectors)); }

}  // namespace

void probe_read(const void* x, void* sink, size_t bytes, int blocks, Stream stream) {
  probe_read_kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(static_cast<const uint4*>(x),
                                                                  static_cast<uint4*>(sink), bytes / 16);
  check_launch("probe_read_kernel");
}

void probe_write(void* y, size_t bytes, Stream stream) {
  probe_write_kernel<<<blocks_for(bytes), kThreads, 0, cuda_stream(stream)>>>(static_cast<uint4*>(y));
  check_launch("probe_write_kernel");
}

void probe_copy(const void* x, void* y, size_t bytes, Stream stream) {
  probe_copy_kernel<<<blocks_for(bytes), kThreads, 0, cuda_stream(stream)>>>(static_cast<const uint4*>(x),
                                                                             static_cast<uint4*>(y));
  check_launch("probe_copy_kernel");
}

}  // namespace kiln
