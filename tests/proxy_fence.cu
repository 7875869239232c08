// What happens where fence.proxy.async is left out, and does racecheck see it?
//
//   proxy_fence fenced|unfenced [ROUNDS]
//
// A block writes a tile of shared memory with ordinary stores and lets the copy engine store it to global
// memory (cp.async.bulk, the asynchronous proxy), ROUNDS times over the same tile, each time with other
// values and into another place. One kernel fences its writes before the barrier, the other one does not. A
// second kernel counts the words that are not what was written. Prints one line of JSON; exits with status 1
// where the fenced kernel went wrong. Shared memory: 16 KiB. scripts/gpu_check sanitizer runs both under
// racecheck, and tests/test_sass.py must find the missing fence in the machine code.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/common/check.h"
#include "kernels/common/error.h"
#include "kernels/common/tma.cuh"

namespace kiln {
namespace {

constexpr int kThreads = 256, kWords = 4096, kBlocks = 264;

__device__ __forceinline__ uint32_t expected(int block, int round, int word) {
  return (static_cast<uint32_t>(block) * 8191u + static_cast<uint32_t>(round)) * 2654435761u +
         static_cast<uint32_t>(word);
}

template <bool kFence>
__device__ __forceinline__ void copy_tiles(uint32_t* out,  // [kBlocks,rounds,kWords]
                                           int rounds) {
  __shared__ alignas(128) uint32_t tile[kWords];
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
  for (int round = 0; round < rounds; ++round) {
    for (int i = threadIdx.x; i < kWords; i += kThreads) tile[i] = expected(blockIdx.x, round, i);
    if (kFence) tma_store_fence();
    __syncthreads();  // the tile is written
    if (threadIdx.x == 0) {
      uint32_t* to = out + (static_cast<size_t>(blockIdx.x) * rounds + round) * kWords;
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to), "r"(from),
                   "r"(kWords * 4)
                   : "memory");
      tma_store_commit();
      tma_store_wait_read<0>();
    }
    __syncthreads();  // the tile has been read
  }
}

__global__ __launch_bounds__(kThreads) void copy_fenced_kernel(uint32_t* out,  // [kBlocks,rounds,kWords]
                                                               int rounds) {
  copy_tiles<true>(out, rounds);
}

__global__ __launch_bounds__(kThreads) void copy_unfenced_kernel(uint32_t* out,  // [kBlocks,rounds,kWords]
                                                                 int rounds) {
  copy_tiles<false>(out, rounds);
}

__global__ void count_wrong_kernel(const uint32_t* out,  // [kBlocks,rounds,kWords]
                                   int rounds,
                                   unsigned long long* wrong) {  // [1]
  unsigned long long mine = 0;
  for (int round = 0; round < rounds; ++round) {
    const uint32_t* tile = out + (static_cast<size_t>(blockIdx.x) * rounds + round) * kWords;
    for (int i = threadIdx.x; i < kWords; i += kThreads) mine += tile[i] != expected(blockIdx.x, round, i);
  }
  if (mine) atomicAdd(wrong, mine);
}

int run(bool fenced, int rounds) {
  int devices = 0, major = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
               "cudaDeviceGetAttribute");
  }
  if (major != 9) {
    std::printf("SKIPPED: proxy_fence needs a GPU of compute capability 9.0\n");
    return 0;
  }
  const size_t words = static_cast<size_t>(kBlocks) * rounds * kWords;
  const DeviceBuffer tiles(words * 4), counter(sizeof(unsigned long long));
  auto* out = static_cast<uint32_t*>(tiles.data());
  auto* wrong = static_cast<unsigned long long*>(counter.data());
  unsigned long long count = 0;
  check_cuda(cudaMemset(out, 0xff, words * 4), "cudaMemset");
  check_cuda(cudaMemset(wrong, 0, sizeof *wrong), "cudaMemset");
  if (fenced) {
    copy_fenced_kernel<<<kBlocks, kThreads>>>(out, rounds);
  } else {
    copy_unfenced_kernel<<<kBlocks, kThreads>>>(out, rounds);
  }
  check_launch("copy_kernel");
  count_wrong_kernel<<<kBlocks, kThreads>>>(out, rounds, wrong);
  check_launch("count_wrong_kernel");
  check_cuda(cudaMemcpy(&count, wrong, sizeof count, cudaMemcpyDeviceToHost), "cudaMemcpy");
  std::printf("{\"fenced\": %s, \"rounds\": %d, \"words\": %zu, \"wrong\": %llu}\n",
              fenced ? "true" : "false", rounds, words, count);
  return fenced && count ? 1 : 0;
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  const bool fenced = argc > 1 && std::strcmp(argv[1], "fenced") == 0;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 64;
  if ((!fenced && (argc < 2 || std::strcmp(argv[1], "unfenced") != 0)) || rounds < 1 || rounds > 256) {
    std::fprintf(stderr, "usage: proxy_fence fenced|unfenced [ROUNDS, at most 256]\n");
    return 2;
  }
  try {
    return kiln::run(fenced, rounds);
  } catch (const kiln::Error& error) {
    std::fprintf(stderr, "proxy_fence: %s\n", error.what());
    return error.exit_status();
  }
}
