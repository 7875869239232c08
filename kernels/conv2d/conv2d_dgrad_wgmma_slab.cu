// conv2d dgrad with a 1x1 filter, stride 1, few pixels and many channels of dx, on Hopper's tensor cores:
//
//   dx[m, c] = sum_k dy[m, k] * w[k, c]
//
// Rows m are pixels. There is one wave of blocks, and each has one turn: nothing is worth a ring. A block
// owns 320 columns and a slab of 192 rows, 64 a warpgroup, all k at once. Rows come straight from device
// memory into the registers from which wgmma takes A, meanwhile the block's filter into shared memory by TMA,
// in pieces of 64 columns, each multiplied as soon as it is there; results go straight back. Which channel is
// called which k is free: the filter's map has five dimensions, in an order that permutes its rows within
// groups of 32 so that what a lane needs of a row of dy is 16 bytes. The quads of lanes exchange results for
// the same end. Shared memory 101 KiB. Needs compute capability 9.0, bf16, K of 64, 96, 128 or 160, C
// in multiples of 8 and packed. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include <algorithm>

#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/mbarrier.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/quad.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/conv2d/conv2d_epilogue.cuh"

namespace kiln {
namespace {

constexpr int kChunk = 64, kChunks = 5, kBN = kChunk * kChunks;  // columns of a product, of a block
constexpr int kWarpgroups = 3, kBM = kWarpgroups * 64, kThreads = kWarpgroups * 128;
constexpr int kAlignment = 1024;  // period of the 128-byte swizzle

template <int kSpans_>
struct SlabConfig {
  static constexpr int kSpans = kSpans_, kSources = kSpans * 32;  // K, in groups of 32
  static constexpr int kPieceBytes = kSources * kChunk * 2;       // of the filter
  static constexpr int kSmemBytes = kChunks * kPieceBytes + kAlignment + kChunks * 8;
};

struct SlabShape {
  int rows;     // pixels
  int columns;  // C
  int column_tiles;
};

__device__ __forceinline__ void load_filter_piece(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                                  int first_column) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %4, %4, %4}], [%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(first_column), "r"(0)
      : "memory");
}

#define KILN_SLAB_8(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

// d[64 x 64] = A[64 x 16] * B[16 x 64] + (add ? d : 0) as Wgmma, with A from registers as mma_bf16's and B
// MN-major.
__device__ __forceinline__ void multiply_from_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                        int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
      : KILN_SLAB_8(0), KILN_SLAB_8(8), KILN_SLAB_8(16), KILN_SLAB_8(24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef KILN_SLAB_8

// Volatile: behind the wait for the launch before, and before the barrier behind it.
__device__ __forceinline__ void load_words(uint32_t* v, const bf16* from) {
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "l"(from));
}

// A lane's words of all channels of rows `row` (the first four of a span) and `row` + 8. Beyond the last row
// it is that row's, which then is not stored; a predicate would have the loads wait for each other.
template <class Config>
__device__ __forceinline__ void load_slab(uint32_t (&a)[Config::kSpans][8], const bf16* dy, unsigned row,
                                          int t, const SlabShape& g) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned own = min(row + 8 * half, static_cast<unsigned>(g.rows) - 1);
    const bf16* from = dy + static_cast<size_t>(own) * Config::kSources + t * 8;
#pragma unroll
    for (int span = 0; span < Config::kSpans; ++span) load_words(&a[span][half * 4], from + span * 32);
  }
}

// A warpgroup's rows times a piece of the filter.
template <class Config>
__device__ __forceinline__ void multiply_piece(float (&acc)[kChunk / 2],
                                               const uint32_t (&a)[Config::kSpans][8], uint32_t piece) {
  const uint64_t b = mn_major_descriptor<kChunk>(piece, Config::kPieceBytes);
  pin_registers(acc);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Config::kSources / 16; ++step) {
    const uint32_t(&words)[8] = a[step / 2];
    const int first = step % 2 * 2;
    const uint32_t fragment[4] = {words[first], words[4 + first], words[first + 1], words[5 + first]};
    multiply_from_registers(acc, fragment, advance_descriptor(b, step * 16 * kChunk * 2), step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin_registers(acc);
}

// Rounds and stores a lane's rows, eight columns at a time.
__device__ __forceinline__ void store_chunk(const float (&acc)[kChunk / 2], bf16* dx, unsigned row, int t,
                                            int first_column, const SlabShape& g) {
#pragma unroll
  for (int span = 0; span < kChunk / 32; ++span) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* v = &acc[(span * 4 + j) * 4 + 2 * half];
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[0], v[1]);
        words[j] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      transpose_quad(words);
      const unsigned own = row + 8 * half;
      const int column = first_column + span * 32 + t * 8;
      if (own < static_cast<unsigned>(g.rows) && column < g.columns) {
        *reinterpret_cast<uint4*>(dx + static_cast<size_t>(own) * g.columns + column) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

template <class Config>
__global__ __launch_bounds__(kThreads, 1) void conv2d_dgrad_slab_wgmma_kernel(
    const bf16* dy,                              // [N*H*W,K]
    const __grid_constant__ CUtensorMap filter,  // w [K,C]
    bf16* dx,                                    // [N*H*W,C]
    const __grid_constant__ SlabShape g) {
  let_next_start();
  extern __shared__ unsigned char raw[];
  const uint32_t pieces = (smem_address(raw) + kAlignment - 1) / kAlignment * kAlignment;
  const uint32_t barriers = pieces + kChunks * Config::kPieceBytes;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int first_column = blockIdx.x % g.column_tiles * kBN;
  const int chunks = min(kChunks, (g.columns - first_column + kChunk - 1) / kChunk);
  const unsigned row = blockIdx.x / g.column_tiles * kBM + threadIdx.x / 32 * 16 + lane / 4;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&filter);
    for (int i = 0; i < chunks; ++i) mbarrier_init(barriers + 8 * i, 1);
    fence_barrier_init();
  }
  wait_for_last();  // nothing but this kernel's parameters has been read
  if (threadIdx.x == 0) {
    for (int i = 0; i < chunks; ++i) {
      mbarrier_arrive_expect(barriers + 8 * i, Config::kPieceBytes);
      load_filter_piece(pieces + i * Config::kPieceBytes, &filter, barriers + 8 * i,
                        first_column + i * kChunk);
    }
  }
  uint32_t a[Config::kSpans][8];
  load_slab<Config>(a, dy, row, t, g);
  __syncthreads();  // barriers are initialised
  float acc[kChunk / 2] = {};
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    mbarrier_wait(barriers + 8 * i, 0);
    multiply_piece<Config>(acc, a, pieces + i * Config::kPieceBytes);
    store_chunk(acc, dx, row, t, first_column + i * kChunk, g);
  }
}

SlabShape shape_of(const Conv2dProblem& p) {
  return {.rows = p.n * p.h * p.w, .columns = p.c, .column_tiles = ceil_div(p.c, kBN)};
}
long long blocks_of(const SlabShape& g) { return 1LL * ceil_div(g.rows, kBM) * g.column_tiles; }

// Row 32i + 8t + 2j + e of w at 32i + 8j + 2t + e of a piece: dimensions c, e, t, j, i.
template <class Config>
CUtensorMap filter_map(const SlabShape& g, const void* w) {
  const uint64_t c = g.columns;
  return make_tiled_map(TiledMap<5>{.base = w,
                                    .sizes = {c, 2, 4, 4, Config::kSpans},
                                    .strides = {c, 8 * c, 2 * c, 32 * c},
                                    .box = {kChunk, 2, 4, 4, Config::kSpans}});
}

Support supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (const Support gate = conv2d_takes_no_gate(p); !gate) return gate;
  if (p.accumulate) return Support::no("it writes dx and does not add to it");
  if (p.r != 1 || p.s != 1) return Support::no("the filter must be 1x1");
  if (p.stride_h != 1 || p.stride_w != 1 || p.pad_h || p.pad_w) {
    return Support::no("stride must be 1, padding 0");
  }
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  if (p.c % 8) return Support::no("input channels must be a multiple of 8");
  if (blocks_of(shape_of(p)) > 2147483647) return Support::no("it takes fewer pixels");
  return Support::require(p.k % 32 == 0 && p.k >= 64 && p.k <= 160,
                          "output channels must be 64, 96, 128 or 160");
}

// Several column tiles, which read the same rows, and either one wave of most of the device, with rows long
// enough and columns enough to fill it with bytes under way, or so many that the last one is nearly full or
// does not count.
bool preferred(const Conv2dProblem& p, const Device& device) {
  const SlabShape g = shape_of(p);
  const long long blocks = blocks_of(g), places = device.multiprocessors;
  if (g.column_tiles < 2) return false;
  if (blocks <= places) {
    return p.k >= 96 && 20LL * g.columns >= 17LL * g.column_tiles * kBN && 5 * blocks >= 3 * places;
  }
  return 2 * blocks >= 7 * places && 10 * blocks >= 9 * places * ceil_div(blocks, places);
}

template <class Config>
Plan<Conv2dDgrad::Args> plan_for(const Conv2dProblem& p) {
  const auto kernel = conv2d_dgrad_slab_wgmma_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_dgrad_slab_wgmma: shared memory");
  return Plan<Conv2dDgrad::Args>(0, [kernel, g = shape_of(p)](const Conv2dDgrad::Args& args, void*) {
    require_aligned_args(&args, sizeof args);
    return Bound([kernel, g, args, filter = filter_map<Config>(g, args.w)](Stream stream) {
      launch_kernel(kernel, "conv2d_dgrad_slab_wgmma_kernel",
                    {.grid = static_cast<unsigned>(blocks_of(g)),
                     .threads = kThreads,
                     .shared_bytes = Config::kSmemBytes,
                     .early = true},
                    stream, static_cast<const bf16*>(args.dy), filter, static_cast<bf16*>(args.dx), g);
    });
  });
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_slab = {
    .name = "slab",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.k == 64    ? plan_for<SlabConfig<2>>(p)
                 : p.k == 96  ? plan_for<SlabConfig<3>>(p)
                 : p.k == 128 ? plan_for<SlabConfig<4>>(p)
                              : plan_for<SlabConfig<5>>(p);
        },
    .preferred = preferred};

}  // namespace kiln
