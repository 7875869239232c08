// Tensor memory access: one thread starts the copy of a box of a tensor into shared memory; the bytes are
// reported to an mbarrier (PTX ISA, "cp.async.bulk.tensor"). Tensor maps come from tensor_map.h and are
// passed to kernels as `const __grid_constant__ CUtensorMap`. Elements outside of the tensor arrive as zeros,
// and count. Destinations are 32-bit shared addresses, aligned to the swizzle's period (8 rows).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace kiln {

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// A box of a 3-D (4-D) tensor from coordinates (i0, i1, i2, ...), innermost first; they may be negative.
__device__ __forceinline__ void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int i0,
                                            int i1, int i2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2)
      : "memory");
}
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int i0,
                                            int i1, int i2, int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}
// The 3-D load into the same address of every block of the cluster whose bit is set; each block's barrier at
// this address receives the bytes.
__device__ __forceinline__ void tma_load_3d_multicast(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                                      uint16_t blocks, int i0, int i1, int i2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6}], [%2], %3;\n" ::"r"(to),
      "l"(map), "r"(barrier), "h"(blocks), "r"(i0), "r"(i1), "r"(i2)
      : "memory");
}

// The box at `from` in shared memory to coordinates (i0, i1, i2, i3) of a 4-D tensor; what lies outside of
// the tensor is not written. The thread that starts it commits and waits. What ordinary stores wrote to
// `from` must have been fenced (tma_store_fence) by its writers, and a barrier passed, before.
__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, uint32_t from, int i0, int i1, int i2,
                                             int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(map),
      "r"(from), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}
__device__ __forceinline__ void tma_store_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Waits until at most kPending of this thread's newest groups of stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kPending) : "memory");
}

// im2col: the map's pixels per column, taken in the order w, h, n from (w, h, n) through the map's bounding
// box, each displaced by the filter offset (s, r); channels from c.
__device__ __forceinline__ void tma_load_im2col(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c,
                                                int w, int h, int n, int s, int r) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(static_cast<uint16_t>(s)),
      "h"(static_cast<uint16_t>(r))
      : "memory");
}

}  // namespace kiln
