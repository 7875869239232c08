// Probes: y[i] = x[i], y[i] = 0, and sum x[i] from DRAM and from L2, 16 bytes a thread and access; FMA chains
// in registers; nothing at all; waiting.
//
// Copy and write: a block owns 16 KiB, a thread four 16-byte vectors, 4 KiB apart, so that four accesses are
// in flight and every warp access is one line of 512 contiguous bytes. Read: blocks step through x with the
// grid's stride, eight loads in flight a thread. No shared memory. Sizes are multiples of what a block owns
// (ceiling_kernels.h).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

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

__global__ __launch_bounds__(kThreads) void probe_l2_kernel(const uint4* __restrict__ x,  // [vectors]
                                                            uint4* __restrict__ sink,     // [1]
                                                            size_t vectors) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  unsigned sum = 0;
#pragma unroll 8
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += stride) {
    const uint4 v = __ldcg(x + i);
    sum |= v.x | v.y | v.z | v.w;
  }
  if (sum == 0xdeadbeefu) *sink = make_uint4(sum, sum, sum, sum);
}

constexpr int kChains = 8, kFmaSteps = 4096, kFmaBlocks = 4;  // chains a thread, steps a chain, blocks an SM

__global__ __launch_bounds__(kThreads) void probe_fma_kernel(float* __restrict__ sink) {  // [1]
  float sum[kChains];
  const float scale = 1.0f - threadIdx.x * 0x1p-30f;
#pragma unroll
  for (int j = 0; j < kChains; ++j) sum[j] = static_cast<float>(j);
#pragma unroll 8
  for (int i = 0; i < kFmaSteps; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) sum[j] = fmaf(sum[j], scale, 0x1p-20f);
  }
  float total = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) total += sum[j];
  if (total == -1.0f) *sink = total;
}

__global__ void probe_nothing_kernel() {}

__device__ unsigned long long global_nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__global__ void probe_wait_kernel(unsigned nanoseconds) {
  const unsigned long long begin = global_nanoseconds();
  while (global_nanoseconds() - begin < nanoseconds) __nanosleep(1000);
}

// 32 random bits of an index (the finaliser of MurmurHash3).
__device__ unsigned mixed_bits(unsigned x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

template <int kElement, bool kBf16>
__global__ __launch_bounds__(kThreads) void fill_noise_kernel(void* x, size_t elements) {  // [elements]
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  const float value = static_cast<float>(mixed_bits(static_cast<unsigned>(i)) >> 8) * 0x1p-23f - 1.0f;
  if constexpr (kElement == 4) {
    static_cast<float*>(x)[i] = value;
  } else if constexpr (kBf16) {
    static_cast<__nv_bfloat16*>(x)[i] = __float2bfloat16(value);
  } else {
    static_cast<__half*>(x)[i] = __float2half(value);
  }
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

void probe_l2(const void* x, void* sink, size_t bytes, int blocks, Stream stream) {
  probe_l2_kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(static_cast<const uint4*>(x),
                                                                static_cast<uint4*>(sink), bytes / 16);
  check_launch("probe_l2_kernel");
}

void probe_fma(void* sink, int multiprocessors, Stream stream) {
  probe_fma_kernel<<<multiprocessors * kFmaBlocks, kThreads, 0, cuda_stream(stream)>>>(
      static_cast<float*>(sink));
  check_launch("probe_fma_kernel");
}

double probe_fma_flops(int multiprocessors) {
  return 2.0 * kChains * kFmaSteps * kThreads * kFmaBlocks * multiprocessors;
}

void probe_nothing(Stream stream) {
  probe_nothing_kernel<<<1, 32, 0, cuda_stream(stream)>>>();
  check_launch("probe_nothing_kernel");
}

void probe_wait(unsigned nanoseconds, Stream stream) {
  probe_wait_kernel<<<1, 1, 0, cuda_stream(stream)>>>(nanoseconds);
  check_launch("probe_wait_kernel");
}

void fill_noise(void* x, size_t bytes, int element, bool bf16, Stream stream) {
  const size_t elements = bytes / element;
  const auto blocks = static_cast<unsigned>((elements + kThreads - 1) / kThreads);
  const auto kernel = element == 4 ? fill_noise_kernel<4, false>
                      : bf16       ? fill_noise_kernel<2, true>
                                   : fill_noise_kernel<2, false>;
  kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(x, elements);
  check_launch("fill_noise_kernel");
}

}  // namespace kiln
