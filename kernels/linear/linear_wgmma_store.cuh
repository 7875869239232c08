// How the sums of linear's wgmma product leave a warp: 16 rows of kBN columns from the accumulators, as fp32
// or as bf16. Rows and columns beyond the result are left out.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/common/vec.cuh"

namespace kiln {

// Writes a warp's 16 rows from the accumulators as fp32; four lanes fill a 32-byte sector.
template <int kBN>
__device__ __forceinline__ void store_f32(const float (&acc)[kBN / 2], int first_row, int first_column,
                                          int rows, int columns,
                                          const float* bias,  // [columns] or null
                                          float* out) {       // [rows,columns]
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kBN / 8; ++j) {
    const int column = first_column + j * 8 + 2 * (lane % 4);
    if (column >= columns) break;
    const float2 add = bias ? *reinterpret_cast<const float2*>(bias + column) : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + lane / 4;
      if (row < rows) {
        *reinterpret_cast<float2*>(out + static_cast<size_t>(row) * columns + column) =
            make_float2(acc[4 * j + 2 * half] + add.x, acc[4 * j + 2 * half + 1] + add.y);
      }
    }
  }
}

// The same as bf16 through the warp's staging rows, 64 columns at once, so that eight lanes fill a row's 128
// bytes.
template <int kBN>
__device__ __forceinline__ void store_bf16(const float (&acc)[kBN / 2], unsigned char* staging, int first_row,
                                           int first_column, int rows, int columns,
                                           const float* bias,  // [columns] or null
                                           bf16* out) {        // [rows,columns]
  using Tile = SwizzledTile<64>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int span = 0; span < kBN / 64; ++span) {
    const int span_column = first_column + span * 64;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = span_column + j * 8 + 2 * (lane % 4);
      float2 add = make_float2(0.0f, 0.0f);
      if (bias && column < columns) add = *reinterpret_cast<const float2*>(bias + column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* v = &acc[32 * span + 4 * j + 2 * half];
        *(reinterpret_cast<__nv_bfloat162*>(staging + Tile::offset(lane / 4 + 8 * half, j)) + lane % 4) =
            __floats2bfloat162_rn(v[0] + add.x, v[1] + add.y);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int in_tile = i * 4 + lane / 8, row = first_row + in_tile, column = span_column + lane % 8 * 8;
      if (row < rows && column < columns) {
        const auto* from = reinterpret_cast<const bf16*>(staging + Tile::offset(in_tile, lane % 8));
        Vec<bf16, 8>::load(from).store(out + static_cast<size_t>(row) * columns + column);
      }
    }
    __syncwarp();  // read by the warp: the next columns may overwrite it
  }
}

}  // namespace kiln
