// The product behind the three passes of linear by mma.sync, for any size and any GPU from sm_80 on:
//
//   out[i,j] = bias[j] + sum_l A(i,l) * B(j,l),   row_sums[i] = sum_l A(i,l)
//
// A block owns a kBM x kBN tile of out over one part of the sum, eight or four warps share it; tiles of 32 l
// come through four stages of shared memory (64 or 32 KiB) by cp.async, or, where an operand's rows are not
// multiples of 16 bytes, element by element through registers. An operand lies along the sum ([rows, l]) or
// across it ([l, rows]), then ldmatrix transposes. Parts of a cut sum go to the workspace, for
// linear_sum_splits. Row sums (dbias) are A's fragments times ones. Deterministic: one thread sums an element
// of a part, in a fixed order.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/common/grid.h"
#include "kernels/common/mma.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_split.h"

namespace kiln {
namespace {

template <int kBM_, int kBN_, int kWarpsM_, int kWarpsN_, bool kAAcross_, bool kBAcross_>
struct LinearMmaConfig {
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kBK = 32, kStages = 4;
  static constexpr bool kAAcross = kAAcross_, kBAcross = kBAcross_;  // stored [l, rows]
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kWM = kBM / kWarpsM, kWN = kBN / kWarpsN;  // a warp's tile
  static constexpr int kMT = kWM / 16, kNT = kWN / 8;             // in m16n8 products
  static constexpr int kABytes = kBM * kBK * 2, kStageBytes = kABytes + kBN * kBK * 2;
  static constexpr int kSmemBytes = kStages * kStageBytes;
  using ATile = SwizzledTile<kAAcross ? kBM : kBK>;
  using BTile = SwizzledTile<kBAcross ? kBN : kBK>;
  static_assert(kWM % 16 == 0 && kWN % 16 == 0, "a warp's tile is whole ldmatrix.x4 loads");
};

struct LinearMmaShape {
  int rows, columns, terms;  // of out; length of the sum
  int lda, ldb;              // elements from one stored row of an operand to the next
  int part_terms;            // of a part, a multiple of kBK
  int splits;                // parts
  bool f32_out;              // out is fp32
  long long partial_stride;  // floats from one part's sums to the next
};

// Starts the copy of eight neighbours from p into shared memory, of which the first `valid` exist; the others
// become zeros. `vector`: p is 16-byte aligned and valid is 8 or at most 0; `legal` is any address of the
// tensor.
__device__ __forceinline__ void load_chunk(uint32_t to, const bf16* p, int valid, bool vector,
                                           const bf16* legal) {
  if (vector) return cp_async16(to, valid > 0 ? p : legal, valid > 0);
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    __nv_bfloat162 v;
    v.x = 2 * i < valid ? p[2 * i] : from_float<bf16>(0.0f);
    v.y = 2 * i + 1 < valid ? p[2 * i + 1] : from_float<bf16>(0.0f);
    pair[i] = *reinterpret_cast<const uint32_t*>(&v);
  }
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(pair[0]), "r"(pair[1]),
               "r"(pair[2]), "r"(pair[3])
               : "memory");
}

// One operand's tile: kRows rows from `first_row`, kBK of l from `l`.
template <class Config, int kRows, bool kAcross>
__device__ __forceinline__ void load_operand_tile(uint32_t tile, const bf16* source, int ld, int first_row,
                                                  int rows, int l, int terms) {
  constexpr int kLine = kAcross ? kRows : Config::kBK, kChunks = kLine / 8;  // of one stored row of the tile
  constexpr int kAll = kRows * Config::kBK / 8;
  static_assert(kAll % Config::kThreads == 0, "every thread copies as many chunks");
  const int first_line = kAcross ? l : first_row, lines = kAcross ? terms : rows;
  const int first_element = kAcross ? first_row : l, elements = kAcross ? rows : terms;
#pragma unroll
  for (int i = 0; i < kAll / Config::kThreads; ++i) {
    const int index = threadIdx.x + i * Config::kThreads, in_tile = index / kChunks, chunk = index % kChunks;
    const int line = first_line + in_tile, element = first_element + chunk * 8;
    const int valid = line < lines ? elements - element : 0;
    load_chunk(tile + SwizzledTile<kLine>::offset(in_tile, chunk),
               source + static_cast<size_t>(line) * ld + element, valid, ld % 8 == 0, source);
  }
}

// A thread's sums: its elements of the warp's tile, and of the product by ones, whose columns are row sums.
template <class Config>
struct LinearMmaSums {
  float v[Config::kMT][Config::kNT][4];
  float rows[Config::kMT][4];
};

// Adds one stage's products, once its copies are visible to the block.
template <class Config>
__device__ __forceinline__ void multiply_tiles(LinearMmaSums<Config>& sums, uint32_t a_tile, uint32_t b_tile,
                                               int warp_m, int warp_n, bool sums_rows) {
  constexpr uint32_t kOnes = 0x3f803f80;  // two of them in bf16
  const int row8 = threadIdx.x % 8, low = threadIdx.x / 8 % 2, high = threadIdx.x % 32 / 16;
#pragma unroll
  for (int k16 = 0; k16 < Config::kBK / 16; ++k16) {
    uint32_t a[Config::kMT][4], b[Config::kNT / 2][4];
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
      const int m = warp_m * Config::kWM + i * 16;
      ldmatrix_x4<Config::kAAcross>(
          a[i], a_tile + (Config::kAAcross ? Config::ATile::offset(k16 * 16 + row8 + high * 8, m / 8 + low)
                                           : Config::ATile::offset(m + row8 + low * 8, k16 * 2 + high)));
      if (Config::kAAcross && sums_rows) mma_bf16(sums.rows[i], a[i], kOnes, kOnes);
    }
#pragma unroll
    for (int j = 0; j < Config::kNT / 2; ++j) {
      const int n = warp_n * Config::kWN + j * 16;
      ldmatrix_x4<Config::kBAcross>(
          b[j], b_tile + (Config::kBAcross ? Config::BTile::offset(k16 * 16 + row8 + low * 8, n / 8 + high)
                                           : Config::BTile::offset(n + row8 + high * 8, k16 * 2 + low)));
    }
#pragma unroll
    for (int i = 0; i < Config::kMT; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kNT; ++j) {
        mma_bf16(sums.v[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// Elements i and i + 1 of out, the second where `both`.
template <class Out>
__device__ __forceinline__ void store_pair(Out* out, size_t i, float2 v, bool both, bool vector) {
  if (both && vector) {
    Vec<Out, 2> pair;
    pair.set(0, v.x);
    pair.set(1, v.y);
    return pair.store(out + i);
  }
  out[i] = from_float<Out>(v.x);
  if (both) out[i + 1] = from_float<Out>(v.y);
}

// Writes the block's tile, a pair of columns a lane.
template <class Config, class Out>
__device__ __forceinline__ void store_sums(const LinearMmaSums<Config>& sums, int warp_row, int warp_column,
                                           const float* bias, Out* out, const LinearMmaShape& g) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Config::kNT; ++j) {
    const int column = warp_column + j * 8 + 2 * (lane % 4);
    if (column >= g.columns) break;
    const bool both = column + 1 < g.columns;
    const float2 add =
        bias ? make_float2(bias[column], both ? bias[column + 1] : 0.0f) : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < Config::kMT * 2; ++i) {
      const int row = warp_row + i * 8 + lane / 4;
      if (row >= g.rows) break;
      const float* v = &sums.v[i / 2][j][i % 2 * 2];
      store_pair(out, static_cast<size_t>(row) * g.columns + column, make_float2(v[0] + add.x, v[1] + add.y),
                 both, g.columns % 2 == 0);
    }
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 2) void linear_mma_sync_kernel(
    const bf16* __restrict__ a,      // fwd: x [N,C]; dgrad: dy [N,K]; wgrad: dy [N,K], across
    const bf16* __restrict__ b,      // fwd: w [K,C]; dgrad: w [K,C], across; wgrad: x [N,C], across
    const float* __restrict__ bias,  // [columns] or null
    void* __restrict__ out,          // fwd: y [N,K]; dgrad: dx [N,C]; wgrad: dw [K,C]
    float* __restrict__ row_sums,    // [rows] or null
    float* __restrict__ partial,     // [splits,partial_stride], used where there is more than one part
    const __grid_constant__ LinearMmaShape g) {
  let_next_start();
  extern __shared__ __align__(128) unsigned char smem[];
  const int column_tiles = (g.columns + Config::kBN - 1) / Config::kBN;
  const int first_row = static_cast<int>(blockIdx.x / column_tiles) * Config::kBM;
  const int first_column = static_cast<int>(blockIdx.x % column_tiles) * Config::kBN;
  const int warp_m = threadIdx.x / 32 / Config::kWarpsN, warp_n = threadIdx.x / 32 % Config::kWarpsN;
  const bool sums_rows = Config::kAAcross && row_sums != nullptr && first_column == 0 && warp_n == 0;
  LinearMmaSums<Config> sums = {};

  const int first = blockIdx.y * g.part_terms, length = min(g.part_terms, g.terms - first);
  const int steps = (length + Config::kBK - 1) / Config::kBK;
  int loaded = 0;
  const auto load_next = [&] {
    if (loaded < steps) {
      const uint32_t a_tile = smem_address(smem) + loaded % Config::kStages * Config::kStageBytes;
      const int l = first + loaded * Config::kBK;
      load_operand_tile<Config, Config::kBM, Config::kAAcross>(a_tile, a, g.lda, first_row, g.rows, l,
                                                               g.terms);
      load_operand_tile<Config, Config::kBN, Config::kBAcross>(a_tile + Config::kABytes, b, g.ldb,
                                                               first_column, g.columns, l, g.terms);
    }
    ++loaded;
    cp_async_commit();
  };
  for (int i = 0; i < Config::kStages - 1; ++i) load_next();
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Config::kStages - 2>();
    __syncthreads();  // the stage has arrived for all; the stage read in the step before may be overwritten
    load_next();
    const uint32_t a_tile = smem_address(smem) + step % Config::kStages * Config::kStageBytes;
    multiply_tiles<Config>(sums, a_tile, a_tile + Config::kABytes, warp_m, warp_n, sums_rows);
  }

  const int warp_row = first_row + warp_m * Config::kWM, warp_column = first_column + warp_n * Config::kWN;
  float* totals = row_sums;
  if (g.splits > 1) {
    float* products = partial + blockIdx.y * g.partial_stride;
    totals = products + static_cast<size_t>(g.rows) * g.columns;
    store_sums<Config>(sums, warp_row, warp_column, nullptr, products, g);
  } else if (g.f32_out) {
    store_sums<Config>(sums, warp_row, warp_column, bias, static_cast<float*>(out), g);
  } else {
    store_sums<Config>(sums, warp_row, warp_column, bias, static_cast<bf16*>(out), g);
  }
  if constexpr (Config::kAAcross) {
    if (!sums_rows || threadIdx.x % 4 != 0) return;
#pragma unroll
    for (int i = 0; i < Config::kMT * 2; ++i) {
      const int row = warp_row + i * 8 + threadIdx.x % 32 / 4;
      if (row < g.rows) totals[row] = sums.rows[i / 2][i % 2 * 2];
    }
  }
}

// A pass's tensors.
struct LinearMmaOperands {
  const void* a;
  const void* b;
  const void* bias;
  void* out;
  void* row_sums;
};

// Two blocks a multiprocessor and no chain of additions too long, but at least four stages of work each.
template <class Config>
LinearMmaShape split_terms(LinearMmaShape g, const Device& device) {
  const long long tiles = 1LL * ceil_div(g.rows, Config::kBM) * ceil_div(g.columns, Config::kBN);
  const int steps = ceil_div(g.terms, Config::kBK);
  const int least = linear_least_splits(g.terms, Config::kBK, 2048, g.f32_out);
  const long long fill = std::min<long long>(2LL * device.multiprocessors / tiles, std::max(1, steps / 4));
  const long long wanted = std::min<long long>(std::max<long long>(fill, least),
                                               std::max(least, linear_most_splits(g.rows, g.columns)));
  g.part_terms = ceil_div(steps, std::clamp<long long>(wanted, 1, steps)) * Config::kBK;
  g.splits = ceil_div(g.terms, g.part_terms);
  g.partial_stride = static_cast<long long>(LinearSplit{g.rows, g.columns, g.splits}.stride());
  return g;
}

template <class Config, class Args>
Plan<Args> mma_sync_plan_of(const LinearMmaShape& product, const Device& device,
                            LinearMmaOperands (*operands)(const Args&)) {
  const LinearMmaShape g = split_terms<Config>(product, device);
  const LinearSplit split = {.rows = g.rows, .columns = g.columns, .count = g.splits};
  const dim3 grid(grid_for(1LL * ceil_div(g.rows, Config::kBM) * ceil_div(g.columns, Config::kBN), 1),
                  g.splits);
  const auto kernel = linear_mma_sync_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "linear_mma_sync: shared memory");
  return make_plan<Args>(split.workspace_bytes(), [=](const Args& args, void* workspace, Stream stream) {
    const LinearMmaOperands o = operands(args);
    const auto* bias = static_cast<const float*>(o.bias);
    auto* row_sums = static_cast<float*>(o.row_sums);
    auto* partial = static_cast<float*>(workspace);
    kernel<<<grid, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(
        static_cast<const bf16*>(o.a), static_cast<const bf16*>(o.b), bias, o.out, row_sums, partial, g);
    check_launch("linear_mma_sync_kernel");
    if (g.splits > 1) {
      linear_sum_splits(partial, split, bias, o.out, g.f32_out ? DType::kF32 : DType::kBF16, row_sums,
                        stream);
    }
  });
}

// Config "128x128" or "64x64": the tile; unasked the large one where such tiles fill the chip.
template <bool kAAcross, bool kBAcross, class Args>
Plan<Args> mma_sync_plan(const LinearMmaShape& g, const Device& device, std::string_view config,
                         LinearMmaOperands (*operands)(const Args&)) {
  using Wide = LinearMmaConfig<128, 128, 2, 4, kAAcross, kBAcross>;
  using Small = LinearMmaConfig<64, 64, 2, 2, kAAcross, kBAcross>;
  const bool fills = 1LL * ceil_div(g.rows, 128) * ceil_div(g.columns, 128) >= device.multiprocessors;
  if (config.empty()) config = fills ? "128x128" : "64x64";
  if (config == "128x128") return mma_sync_plan_of<Wide>(g, device, operands);
  if (config == "64x64") return mma_sync_plan_of<Small>(g, device, operands);
  fail_usage("unknown tile '" + std::string(config) + "'; known: 128x128, 64x64");
}

inline Support mma_sync_supports(const LinearProblem& p, const Device&) {
  return Support::require(p.dtype == DType::kBF16, "dtype must be bf16");
}

inline std::vector<std::string> mma_sync_configs(const LinearProblem&, const Device&) {
  return {"128x128", "64x64"};
}

}  // namespace
}  // namespace kiln
