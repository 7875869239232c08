// Warpgroup matrix instructions of sm_90a: wgmma m64nNk16, bf16 from shared memory, fp32 accumulators in
// registers (PTX ISA, "Asynchronous warpgroup level matrix instructions").
//
// An operand tile lies in shared memory as TMA writes it: rows of kSpan elements, 32 or 64, whose 16-byte
// chunks are exchanged by the 64- or 128-byte swizzle, eight rows a pattern. "K-major": a row is one m (or n)
// and runs along k; "MN-major": a row is one k and runs along m (or n).
#pragma once

#include <cstdint>

namespace kiln {

// Descriptor of a K-major tile: rows are m or n. 16 elements of k further on is 32 bytes further on.
template <int kSpan>
__device__ __forceinline__ uint64_t k_major_descriptor(uint32_t tile) {
  static_assert(kSpan == 32 || kSpan == 64, "a row is one swizzle span");
  constexpr uint64_t kGroup = 8 * kSpan * 2;  // bytes from eight rows to the next eight
  constexpr uint64_t kSwizzle = kSpan == 64 ? 1 : 2;
  return (kSwizzle << 62) | ((kGroup >> 4) << 32) | (1ull << 16) | ((tile & 0x3ffff) >> 4);
}
// Descriptor of an MN-major tile: rows are k; blocks of kSpan m or n follow each other every block_bytes.
// 16 elements of k further on is 16 rows further on.
template <int kSpan>
__device__ __forceinline__ uint64_t mn_major_descriptor(uint32_t tile, uint32_t block_bytes) {
  static_assert(kSpan == 32 || kSpan == 64, "a row is one swizzle span");
  constexpr uint64_t kGroup = 8 * kSpan * 2;
  constexpr uint64_t kSwizzle = kSpan == 64 ? 1 : 2;
  return (kSwizzle << 62) | ((kGroup >> 4) << 32) | (static_cast<uint64_t>(block_bytes >> 4) << 16) |
         ((tile & 0x3ffff) >> 4);
}
// The descriptor `bytes` further on (a multiple of 16, within the same swizzle pattern's phase).
__device__ __forceinline__ uint64_t advance_descriptor(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Before the first wgmma, and after other code has written accumulators: orders registers with wgmma.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most kPending of the newest groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across this point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d[64 x kN] = A[64 x 16] * B[16 x kN] + (add ? d : 0), asynchronously, by the four warps of a warpgroup.
// Lane l of warp i holds rows 16i + l/4 (d[4j], d[4j+1]) and 16i + l/4 + 8 (d[4j+2], d[4j+3]) of columns
// 8j + 2*(l%4) and the next. kTransposeA, kTransposeB: 1 for MN-major tiles.
template <int kN, int kTransposeA, int kTransposeB>
struct Wgmma;

#define KILN_WGMMA_8(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <int kTransposeA, int kTransposeB>
struct Wgmma<32, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[16], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, %19, %20;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<64, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[32], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<96, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[48], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, p, 1, 1, %51, %52;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24), KILN_WGMMA_8(32),
          KILN_WGMMA_8(40)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<128, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[64], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24), KILN_WGMMA_8(32),
          KILN_WGMMA_8(40), KILN_WGMMA_8(48), KILN_WGMMA_8(56)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<160, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[80], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, %80, %81, p, 1, 1, %83, %84;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24), KILN_WGMMA_8(32),
          KILN_WGMMA_8(40), KILN_WGMMA_8(48), KILN_WGMMA_8(56), KILN_WGMMA_8(64), KILN_WGMMA_8(72)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<192, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[96], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, %99, %100;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24), KILN_WGMMA_8(32),
          KILN_WGMMA_8(40), KILN_WGMMA_8(48), KILN_WGMMA_8(56), KILN_WGMMA_8(64), KILN_WGMMA_8(72),
          KILN_WGMMA_8(80), KILN_WGMMA_8(88)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

template <int kTransposeA, int kTransposeB>
struct Wgmma<256, kTransposeA, kTransposeB> {
  __device__ __forceinline__ static void multiply(float (&d)[128], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
        : KILN_WGMMA_8(0), KILN_WGMMA_8(8), KILN_WGMMA_8(16), KILN_WGMMA_8(24), KILN_WGMMA_8(32),
          KILN_WGMMA_8(40), KILN_WGMMA_8(48), KILN_WGMMA_8(56), KILN_WGMMA_8(64), KILN_WGMMA_8(72),
          KILN_WGMMA_8(80), KILN_WGMMA_8(88), KILN_WGMMA_8(96), KILN_WGMMA_8(104), KILN_WGMMA_8(112),
          KILN_WGMMA_8(120)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));
  }
};

#undef KILN_WGMMA_8

}  // namespace kiln
