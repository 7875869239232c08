#include "kernels/common/tensor_map.h"

#include <cuda_runtime.h>

#include <string>

#include "kernels/common/check.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

// The driver's function, found through the runtime so that nothing links against libcuda.
template <class Function>
Function* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    fail_failure(std::string(name) + ": the driver does not have it");
  }
  return reinterpret_cast<Function*>(function);
}

void check_encoded(CUresult status, const char* name) {
  if (status != CUDA_SUCCESS) {
    fail_failure(std::string(name) + " refused the tensor map (CUresult " + std::to_string(status) + ")");
  }
}

CUtensorMapSwizzle swizzle_of(uint32_t inner_bytes) {
  return inner_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
}

CUtensorMapDataType type_of(int element_bytes) {
  return element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

constexpr uint64_t kElementBytes = 2;

template <int kRank>
CUtensorMap encode_tiled(const TiledMap<kRank>& map) {
  static const auto encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t sizes[kRank], strides[kRank - 1];
  cuuint32_t box[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) {
    sizes[i] = map.sizes[i];
    box[i] = map.box[i];
    steps[i] = 1;
    if (i > 0) strides[i - 1] = map.strides[i - 1] * kElementBytes;
  }
  CUtensorMap encoded;
  check_encoded(
      encode(&encoded, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(map.base), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(map.box[0] * kElementBytes),
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeTiled");
  return encoded;
}

}  // namespace

CUtensorMap make_tiled_map(const TiledMap<3>& map) { return encode_tiled(map); }
CUtensorMap make_tiled_map(const TiledMap<4>& map) { return encode_tiled(map); }
CUtensorMap make_tiled_map(const TiledMap<5>& map) { return encode_tiled(map); }

CUtensorMap make_dense_map(const DenseMap& map) {
  static const auto encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4];
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i) {
    sizes[i] = map.sizes[i];
    box[i] = map.box[i];
    if (i > 0) strides[i - 1] = (i > 1 ? strides[i - 2] : map.element_bytes) * sizes[i - 1];
  }
  CUtensorMap encoded;
  check_encoded(encode(&encoded, type_of(map.element_bytes), 4, const_cast<void*>(map.base), sizes, strides,
                       box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                "cuTensorMapEncodeTiled");
  return encoded;
}

CUtensorMap make_im2col_map(const Im2colMap& map) {
  static const auto encode = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const cuuint64_t pixel = static_cast<cuuint64_t>(map.channel_stride) * map.element_bytes;
  const auto swizzle =
      map.swizzled ? swizzle_of(map.channels * map.element_bytes) : CU_TENSOR_MAP_SWIZZLE_NONE;
  const cuuint64_t strides[3] = {pixel, pixel * map.w, pixel * map.w * map.h};
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(map.c), static_cast<cuuint64_t>(map.w),
                               static_cast<cuuint64_t>(map.h), static_cast<cuuint64_t>(map.n)};
  const int lower[2] = {map.lower_w, map.lower_h};  // in the order of the sizes
  const int upper[2] = {map.upper_w, map.upper_h};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(map.stride_w),
                               static_cast<cuuint32_t>(map.stride_h), 1};
  CUtensorMap encoded;
  check_encoded(encode(&encoded, type_of(map.element_bytes), 4, const_cast<void*>(map.base), sizes, strides,
                       lower, upper, map.channels, map.pixels, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                "cuTensorMapEncodeIm2col");
  return encoded;
}

}  // namespace kiln
