// Warp-level matrix instructions of sm_80 and later: mma.sync m16n8k16 (bf16 in, fp32 out), ldmatrix and
// cp.async, as in NVIDIA's PTX ISA ("Warp-level matrix instructions", "Data movement: cp.async").
#pragma once

#include <cstdint>

#include "kernels/common/vec.cuh"

namespace kiln {

// Address of shared memory as the 32-bit number that PTX wants.
__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes from global to shared memory without registers; zeros where !valid (`from` is then not
// read, but must be a legal address).
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most kPending of this thread's newest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of bf16. Lane l gives the address of row l%8 of matrix l/8; it receives elements
// (l/4, 2*(l%4)) and the next of each (of each transposed with kTranspose).
template <bool kTranspose>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], uint32_t address) {
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
  }
}

// d[16x8] += a[16x16] * b[16x8]. Lane l holds d(l/4, 2*(l%4)), the next column, and the same of row l/4 + 8.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A tile of bf16 in shared memory: rows of kColumns (32, or a multiple of 64), in 16-byte chunks that are
// exchanged within a row by a pattern of the row, so that the eight rows of an 8x8 matrix lie in different
// banks.
template <int kColumns>
struct SwizzledTile {
  static_assert(kColumns == 32 || kColumns % 64 == 0, "the swizzle needs 4 or a multiple of 8 chunks a row");
  static constexpr int kChunks = kColumns / 8;
  // Byte offset of chunk `chunk` (8 elements) of row `row`.
  __device__ __forceinline__ static uint32_t offset(int row, int chunk) {
    const int pattern = kColumns == 32 ? (row >> 1) & 3 : row & 7;
    return static_cast<uint32_t>((row * kChunks + (chunk ^ pattern)) * 16);
  }
};

}  // namespace kiln
