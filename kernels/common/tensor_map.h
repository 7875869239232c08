// Tensor maps: the descriptors by which TMA finds a tensor. They hold the address, so they are made where
// buffers are bound. Sizes are given innermost first. Tensors are bf16 and a box's inner extent is one
// swizzle span, unless a map says otherwise.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

namespace kiln {

// A tensor of 3 to 5 dimensions and the box that one load copies.
template <int kRank>
struct TiledMap {
  const void* base;                   // 16-byte aligned
  std::array<uint64_t, kRank> sizes;  // elements
  std::array<uint64_t, kRank - 1>
      strides;                      // elements from one index of dimension 1, 2.. to the next, multiples of 8
  std::array<uint32_t, kRank> box;  // elements, each at most 256; box[0] is 32 (64-byte swizzle) or 64 (128)
};
CUtensorMap make_tiled_map(const TiledMap<3>& map);
CUtensorMap make_tiled_map(const TiledMap<4>& map);
CUtensorMap make_tiled_map(const TiledMap<5>& map);

// A dense tensor, the box that one load copies as it is (no swizzle).
struct DenseMap {
  const void* base;               // 16-byte aligned
  int element_bytes;              // 2 (bf16) or 4 (fp32)
  std::array<uint64_t, 4> sizes;  // elements; those of dimension 0 are a multiple of 16 bytes
  std::array<uint32_t, 4> box;    // elements, each at most 256; box[0] is a multiple of 16 bytes
};
CUtensorMap make_dense_map(const DenseMap& map);

// The gathered map of a convolution. Pixel (q, p) of the sweep stands at (lower_w + q*stride_w,
// lower_h + p*stride_h) of the tensor, as long as that is at most (w - 1 + upper_w, h - 1 + upper_h).
struct Im2colMap {
  const void* base;      // [n][h][w][channel_stride], 16-byte aligned
  int c, w, h, n;        // sizes; channels from c on read as zeros
  int channel_stride;    // elements from one pixel to the next, a multiple of 16 bytes
  int lower_w, lower_h;  // each corner within [-128, 127]
  int upper_w, upper_h;
  int stride_w, stride_h;  // 1 to 8
  int channels, pixels;    // of one load: a swizzle span of 64 or 128 bytes, at most 256 pixels
  int element_bytes = 2;   // 2 (bf16) or 4 (fp32)
  bool swizzled = true;    // else a load is dense, any multiple of 16 bytes wide
};
CUtensorMap make_im2col_map(const Im2colMap& map);

}  // namespace kiln
