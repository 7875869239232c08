// Warp-level matrix instructions of sm_80 and later: mma.sync m16n8k16 (bf16 in, fp32 out) and m16n8k8 (tf32
// in, fp32 out), ldmatrix and cp.async, as in NVIDIA's PTX ISA ("Warp-level matrix instructions", "Data
// movement: cp.async").
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

// 32 bits of shared memory.
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t d;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(d) : "r"(address) : "memory");
  return d;
}

// Four 8x8 matrices of bf16. Lane l gives the address of row l%8 of matrix l/8; it receives elements
// (l/4, 2*(l%4)) and the next of each (of each transposed with kTranspose). Without kTranspose as well four
// 8x4 matrices of fp32: the lane receives element (l/4, l%4) of each.
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

// The counterpart of ldmatrix_x4<false>, of sm_90 and later: each lane's part of four 8x8 matrices of bf16.
__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(v[0]),
               "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}

// d[16x8] += a[16x16] * b[16x8]. Lane l holds d(l/4, 2*(l%4)), the next column, and the same of row l/4 + 8.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// fp32 bits rounded to tf32's 10 bits of fraction, halves away from zero; NaN stays NaN.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t d;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(d) : "f"(__uint_as_float(bits)));
  return d;
}

// d[16x8] += a[16x8] * b[8x8] of tf32. Lane l holds a(l/4, l%4), (l/4 + 8, l%4), (l/4, l%4 + 4) and
// (l/4 + 8, l%4 + 4), b(l%4, l/4) and (l%4 + 4, l/4), and of d what mma_bf16 has.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
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

// A tile of fp32 in shared memory whose rows are k, for reads down the columns, which ldmatrix does not
// transpose: pairs of 16-byte chunks are exchanged within a row, so that eight neighbouring columns of four
// neighbouring rows lie in different banks.
template <int kColumns>
struct ColumnReadTile {
  static_assert(kColumns % 32 == 0, "the swizzle needs a multiple of 8 chunks a row");
  static constexpr int kRowBytes = kColumns * 4;
  // Byte offset of chunk `chunk` (4 elements) of row `row`.
  __device__ __forceinline__ static uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row & 3) * 2) * 16);
  }
};

}  // namespace kiln
