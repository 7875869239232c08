// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011). The same bits on CPU and GPU from (seed, stream, counter); no state.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace kiln {

struct Philox4 {
  uint32_t v[4];
};

// Streams keep uses apart: the same seed and counter in two streams are independent draws.
enum class PhiloxStream : uint32_t { kWeights = 1, kShuffle = 2, kAugment = 3, kData = 4, kTest = 5 };

KILN_HOST_DEVICE inline Philox4 philox(uint64_t seed, PhiloxStream stream, uint64_t counter,
                                       uint32_t sub = 0) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = sub;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0;
    const uint64_t p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// [0, 1), 24 bits.
KILN_HOST_DEVICE inline float uniform01(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// [0, n) without division bias worth speaking of (n < 2^16): the high word of bits x n.
KILN_HOST_DEVICE inline uint32_t uniform_below(uint32_t bits, uint32_t n) {
  return static_cast<uint32_t>((static_cast<uint64_t>(bits) * n) >> 32);
}

}  // namespace kiln
