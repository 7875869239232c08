// The MD5 message digest of RFC 1321 (R. Rivest, April 1992). Names follow the RFC, section 3.4.
#include "data/md5.h"

#include <algorithm>
#include <bit>

namespace kiln {
namespace {

// floor(2^32 * |sin(i + 1)|)
constexpr std::array<uint32_t, 64> kT = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};
constexpr std::array<std::array<int, 4>, 4> kShift = {
    {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}}};

uint32_t little_endian(const uint8_t* p) {
  return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
}

void transform(std::array<uint32_t, 4>& state, const uint8_t* block) {
  uint32_t x[16];
  for (int i = 0; i < 16; ++i) x[i] = little_endian(block + 4 * i);
  auto [a, b, c, d] = state;
  for (int i = 0; i < 64; ++i) {
    uint32_t f = 0;
    int word = 0;
    switch (i / 16) {
      case 0:
        f = (b & c) | (~b & d);
        word = i;
        break;
      case 1:
        f = (b & d) | (c & ~d);
        word = (5 * i + 1) % 16;
        break;
      case 2:
        f = b ^ c ^ d;
        word = (3 * i + 5) % 16;
        break;
      default:
        f = c ^ (b | ~d);
        word = 7 * i % 16;
    }
    const uint32_t next = b + std::rotl(a + f + x[word] + kT[static_cast<size_t>(i)], kShift[i / 16][i % 4]);
    a = d;
    d = c;
    c = b;
    b = next;
  }
  state = {state[0] + a, state[1] + b, state[2] + c, state[3] + d};
}

}  // namespace

void Md5::update(std::span<const uint8_t> piece) {
  const size_t pending = length_ % kBlock;
  length_ += piece.size();
  if (pending > 0) {
    const size_t taken = std::min(kBlock - pending, piece.size());
    std::copy_n(piece.begin(), taken, pending_.begin() + pending);
    piece = piece.subspan(taken);
    if (pending + taken < kBlock) return;
    transform(state_, pending_.data());
  }
  for (; piece.size() >= kBlock; piece = piece.subspan(kBlock)) transform(state_, piece.data());
  std::copy(piece.begin(), piece.end(), pending_.begin());
}

std::string Md5::hex() const {
  // The rest, a one bit, zeros, and the length in bits as 64-bit little endian: one block or two.
  std::array<uint32_t, 4> state = state_;
  uint8_t tail[2 * kBlock] = {};
  const size_t rest = length_ % kBlock;
  std::copy_n(pending_.begin(), rest, tail);
  tail[rest] = 0x80;
  const size_t tail_size = rest + 9 <= kBlock ? kBlock : 2 * kBlock;
  const uint64_t bits = length_ * 8;
  for (size_t i = 0; i < 8; ++i) tail[tail_size - 8 + i] = static_cast<uint8_t>(bits >> (8 * i));
  for (size_t i = 0; i < tail_size; i += kBlock) transform(state, tail + i);

  std::string text;
  for (const uint32_t word : state) {
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t value = word >> (8 * byte) & 0xff;
      text += "0123456789abcdef"[value >> 4];
      text += "0123456789abcdef"[value & 15];
    }
  }
  return text;
}

std::string md5_hex(std::span<const uint8_t> message) {
  Md5 md5;
  md5.update(message);
  return md5.hex();
}

}  // namespace kiln
