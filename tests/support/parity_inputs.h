// The inputs on which kiln and PyTorch are compared. Both sides draw them from the seed:
// bench/peers/torch_parity.py repeats these formulas in NumPy.
//
//   pixel i     1.7 * (2 u - 1),  u = uniform01(word i % 4 of philox(seed, kTest, i / 4, 0))
//   label n     word 0 of philox(seed, kTest, n, 1), scaled to [0, classes)
//
// i counts all pixels in NHWC order and n all images, from the first image of the first batch on.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/philox.h"
#include "nn/layer_rules.h"

namespace kiln::test {

inline constexpr ValueShape kParityImage = {.h = 32, .w = 32, .c = 3};
inline constexpr int kParityClasses = 10;

struct ParityBatch {
  std::vector<float> images;    // [batch, 32, 32, 3]
  std::vector<int32_t> labels;  // [batch]
};

// Batch `index` of `batch` images.
inline ParityBatch parity_batch(uint64_t seed, int batch, long long index) {
  ParityBatch b = {.images = std::vector<float>(static_cast<size_t>(batch) * kParityImage.elements()),
                   .labels = std::vector<int32_t>(batch)};
  const uint64_t first_pixel = static_cast<uint64_t>(index) * b.images.size();
  for (size_t at = 0; at < b.images.size(); ++at) {
    const uint64_t i = first_pixel + at;
    const Philox4 draw = philox(seed, PhiloxStream::kTest, i / 4);
    b.images[at] = 1.7f * (2 * uniform01(draw.v[i % 4]) - 1);
  }
  for (int at = 0; at < batch; ++at) {
    const uint64_t n = static_cast<uint64_t>(index) * batch + at;
    b.labels[at] =
        static_cast<int32_t>(uniform_below(philox(seed, PhiloxStream::kTest, n, 1).v[0], kParityClasses));
  }
  return b;
}

}  // namespace kiln::test
