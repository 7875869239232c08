// What the tma_rows kernels of depthwise_conv2d share on the device: what a block and a thread own, and the
// ring of stages through which the rows of the source stream.
//
// A block belongs to one slice of channels, one column tile and one row tile, and takes every g.walks-th
// group of images. Fill f of the ring, f = 0, 1, .., brings the next g.stage_rows rows, of the same image
// group or of the next, into stage f % stages; it is phase f / stages of that stage's two barriers: of `full`
// (one arrival, by thread 0, and the bytes) and of `empty` (one arrival a warp that has read it). Before
// thread 0 waits for fill f it starts fill f-1+stages, once all warps are done with fill f-1: none is kept
// for copying, and the wait is at most for warps a stage behind.
#pragma once

#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tile.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma.cuh"
#include "kernels/depthwise_conv2d/depthwise_conv2d_tma_rows.h"

namespace kiln {

inline dim3 rows_dim(const unsigned (&d)[3]) { return {d[0], d[1], d[2]}; }

namespace {

// V neighbouring channels as one access of 4 or 8 bytes, as fp32 in arithmetic.
template <class T, int V>
struct ChannelVector;

template <int V>
struct ChannelVector<bf16, V> {
  static_assert(V == 2 || V == 4, "one access of 4 or 8 bytes");
  Vec<unsigned, V / 2> bits;
  // From a shared-memory address, as one access: the compiler would rather take it apart.
  __device__ __forceinline__ void load_shared(uint32_t from) {
    if constexpr (V == 4) {
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(bits.v[0]), "=r"(bits.v[1]) : "r"(from));
    } else {
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(bits.v[0]) : "r"(from));
    }
  }
  __device__ __forceinline__ void value(float (&to)[V]) const {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      to[i] = __uint_as_float(bits.v[i / 2] << 16);
      to[i + 1] = __uint_as_float(bits.v[i / 2] & 0xffff0000u);
    }
  }
  __device__ __forceinline__ void set(const float (&from)[V]) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[i], from[i + 1]);
      bits.v[i / 2] = *reinterpret_cast<const unsigned*>(&pair);
    }
  }
};

template <int V>
struct ChannelVector<float, V> {
  static_assert(V == 2, "one access of 8 bytes");
  Vec<float, V> values;
  __device__ __forceinline__ void load_shared(uint32_t from) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(values.v[0]), "=f"(values.v[1]) : "r"(from));
  }
  __device__ __forceinline__ void value(float (&to)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = values.v[i];
  }
  __device__ __forceinline__ void set(const float (&from)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) values.v[i] = from[i];
  }
};

// Channels of a thread: as many as its filter leaves registers for, in at most 8 bytes.
template <class T, int kR>
constexpr int kRowsVector = kR == 3 && sizeof(T) == 2 ? 4 : 2;

// The taps of a thread's channels, as fp32; turned by 180 degrees where asked.
template <class T, int kR, int V>
__device__ __forceinline__ void load_vector_taps(float (&taps)[kR][kR][V], const T* w, int channels, int c,
                                                 bool turned) {
#pragma unroll
  for (int i = 0; i < kR * kR; ++i) {
    const T* at = w + (turned ? kR * kR - 1 - i : i) * channels + c;
    ChannelVector<T, V> tap = *reinterpret_cast<const ChannelVector<T, V>*>(at);
    tap.value(taps[i / kR][i % kR]);
#pragma unroll
    for (int v = 0; v < V; ++v) asm("" : "+f"(taps[i / kR][i % kR][v]));  // unpacked once, not for each use
  }
}

// Stores those of kColumns neighbouring pixels, pixel_bytes apart, whose bit of `inside` is set.
template <int V, class T, int kColumns>
__device__ __forceinline__ void store_row(T* to, unsigned pixel_bytes, unsigned inside,
                                          const float (&row)[kColumns][V]) {
  ChannelVector<T, V> packed[kColumns];
#pragma unroll
  for (int t = 0; t < kColumns; ++t) packed[t].set(row[t]);
  if (inside == (1u << kColumns) - 1) {
#pragma unroll
    for (int t = 0; t < kColumns; ++t, to = offset_by(to, pixel_bytes)) {
      *reinterpret_cast<ChannelVector<T, V>*>(to) = packed[t];
    }
  } else {
#pragma unroll
    for (int t = 0; t < kColumns; ++t, to = offset_by(to, pixel_bytes)) {
      if (inside >> t & 1u) *reinterpret_cast<ChannelVector<T, V>*>(to) = packed[t];
    }
  }
}

// Where a block and a thread of it stand. Both have three dimensions, so that nothing is divided: slices of
// channels, column tiles, walks and row tiles; groups of V channels, strips of kColumns columns, images.
struct RowsTask {
  int thread;                // in the block
  int channel, column, row;  // the block's first
  int image, images_apart;   // first of its first task; from one task to the next
  int strip_column, c;  // the thread's first column, from the block's; its first channel, one that exists
  bool works;           // whether that is its own
  int count;            // swept rows
  int steps;            // rows of the source under them, those outside of the source too
  int above;            // how many of them lie above the source
  int rows;             // how many exist, from there on; may be 0 or less

  template <int kColumns, int V>
  __device__ __forceinline__ static RowsTask make(const TmaRowsShape& g, int window) {
    RowsTask at;
    const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
    at.thread = (static_cast<int>(threadIdx.z) * g.strips + y) * g.groups + x;
    at.channel = static_cast<int>(blockIdx.x) * g.channels;
    at.column = static_cast<int>(blockIdx.y) * g.columns;
    const int z = static_cast<int>(blockIdx.z), walk = g.row_tiles_divisor.divide(z);
    at.row = (z - walk * g.row_tiles) * g.rows;
    at.image = walk * g.images;
    at.images_apart = g.walks * g.images;
    at.strip_column = y * kColumns;
    at.c = at.channel + x * V;
    at.works = at.c < g.c;
    if (!at.works) at.c = 0;

    at.count = min(g.rows, g.height - at.row);
    at.steps = (at.count - 1) * g.step + window;
    const int base = g.origin_h + at.row * g.step;
    at.above = max(0, -base);
    at.rows = min(at.steps, g.source_h - base) - at.above;
    return at;
  }
  // Bytes from the begin of boxes [images][rows][columns][pixel bytes] to the thread's first element.
  template <class T, int V>
  __device__ __forceinline__ int first_byte(int rows, int columns, int first_column, int pixel) const {
    return (static_cast<int>(threadIdx.z) * rows * columns + first_column) * pixel +
           static_cast<int>(threadIdx.x) * V * static_cast<int>(sizeof(T));
  }
};

// What is brought next. Only thread 0 needs it, so it is kept in shared memory, not in everyone's registers.
struct RowsFill {
  int image, row, swept_row;    // of the next fill
  int first, end, swept_first;  // rows of the source that are brought, first of the swept map
  int channel, column, swept_column;
  int images_apart;
};
static_assert(sizeof(RowsFill) <= kTmaRowsFillBytes, "it lies behind the barriers");

// The ring. Shared memory: the stages from a multiple of 128 bytes on, each stage's barriers, a RowsFill. A
// stage has rows of the source [images][stage_rows][box_w][channels] and, with kSwept, of the swept map
// [images][stage_rows/kStep][columns][channels].
template <int kStep, bool kSwept>
struct RowsRing {
  const CUtensorMap *source, *swept;
  uint32_t address;  // of the stages
  RowsFill* next;    // thread 0's
  int thread;
  int stage = 0;        // that is or will be read next
  uint32_t parity = 0;  // of its fill

  // All threads of the block. Starts all fills but one.
  __device__ __forceinline__ RowsRing(unsigned char* raw, const TmaRowsShape& g, const RowsTask& at,
                                      const CUtensorMap* source, const CUtensorMap* swept)
      : source(source), swept(swept), thread(at.thread) {
    const uint32_t start = smem_address(raw);
    address = (start + 127) / 128 * 128;
    next =
        reinterpret_cast<RowsFill*>(raw + (address - start) + g.control_at + kTmaRowsControlBytes * g.stages);
    if (thread == 0) {
      const uint32_t warps = (g.groups * g.strips * g.images + 31u) / 32;
      tma_prefetch_map(source);
      if (kSwept) tma_prefetch_map(swept);
      for (int i = 0; i < g.stages; ++i) {
        mbarrier_init(full(g, i), 1);
        mbarrier_init(empty(g, i), warps);
      }
      fence_barrier_init();
      const int base = g.origin_h + at.row * g.step;
      const int first = kSwept ? base : base + at.above, end = kSwept ? base + at.steps : first + at.rows;
      *next = {.image = end > first ? at.image : g.n,
               .row = first,
               .swept_row = at.row,
               .first = first,
               .end = end,
               .swept_first = at.row,
               .channel = at.channel,
               .column = at.column * g.step + g.origin_w,
               .swept_column = at.column,
               .images_apart = at.images_apart};
      for (int i = 0; i + 1 < g.stages; ++i) fill(g, i);
    }
    __syncthreads();  // the barriers are initialised
  }

  __device__ __forceinline__ uint32_t full(const TmaRowsShape& g, int i) const {
    return address + g.control_at + kTmaRowsControlBytes * i;
  }
  __device__ __forceinline__ uint32_t empty(const TmaRowsShape& g, int i) const { return full(g, i) + 8; }

  // Thread 0: starts the next copies, if there are any, into stage i.
  __device__ __forceinline__ void fill(const TmaRowsShape& g, int i) {
    RowsFill& f = *next;
    if (f.image >= g.n) return;
    const uint32_t to = address + i * g.stage_bytes, barrier = full(g, i);
    mbarrier_arrive_expect(barrier, g.load_bytes);
    tma_load_4d(to, source, barrier, f.channel, f.column, f.row, f.image);
    f.row += g.stage_rows;
    if constexpr (kSwept) {
      tma_load_4d(to + g.swept_at, swept, barrier, f.channel, f.swept_column, f.swept_row, f.image);
      f.swept_row += g.stage_rows / kStep;
    }
    if (f.row >= f.end) f.row = f.first, f.swept_row = f.swept_first, f.image += f.images_apart;
  }

  // All threads: waits for the next fill, which they may then read. Returns where it is.
  __device__ __forceinline__ uint32_t wait(const TmaRowsShape& g) {
    if (thread == 0) {
      const int last = stage == 0 ? g.stages - 1 : stage - 1;
      // Of the fill before this one; a fresh barrier's phase before the first counts as ended.
      mbarrier_wait(empty(g, last), stage == 0 ? parity ^ 1 : parity);
      fill(g, last);
    }
    mbarrier_wait(full(g, stage), parity);
    return address + stage * g.stage_bytes;
  }
  // All threads of a warp: the warp has read it.
  __device__ __forceinline__ void release(const TmaRowsShape& g) {
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(empty(g, stage));
    if (++stage == g.stages) stage = 0, parity ^= 1;
  }
};

}  // namespace
}  // namespace kiln
