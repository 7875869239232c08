// MD5 (RFC 1321), to tell the official data files from others. Not for security: collisions are easy to make.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace kiln {

// The digest of a message that comes in pieces.
class Md5 {
 public:
  void update(std::span<const uint8_t> piece);
  std::string hex() const;  // of all pieces so far, 32 lower-case hexadecimal digits

 private:
  static constexpr size_t kBlock = 64;
  std::array<uint32_t, 4> state_ = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  std::array<uint8_t, kBlock> pending_{};  // the last length_ % kBlock bytes
  uint64_t length_ = 0;
};

// The digest of a whole message.
std::string md5_hex(std::span<const uint8_t> message);

}  // namespace kiln
