// Element types of tensors, and bf16 conversion on the host.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kiln {

// kTF32 is fp32 storage with tf32 matrix arithmetic (by name only). kI32 and kU8 are labels, images, argmax.
enum class DType : uint8_t { kF32, kTF32, kBF16, kF16, kI32, kU8 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
    default:
      return 4;
  }
}

// "fp32", "tf32", "bf16", "fp16", "int32", "uint8"
const char* name_of(DType t);
// The inverse of name_of; throws Error naming the known types.
DType dtype_from_name(std::string_view name);

// bf16 as bits, for host buffers. Round to nearest even; NaN stays NaN.
inline uint16_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float bf16_value(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
inline float round_to_bf16(float value) { return bf16_value(bf16_bits(value)); }

}  // namespace kiln
