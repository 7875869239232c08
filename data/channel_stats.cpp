#include "data/channel_stats.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace kiln {

void set_channel_stats(DataPair& data) {
  const Dataset& train = data.train;
  const size_t channels = static_cast<size_t>(train.channels);
  // 256 counters a channel: no rounding, no overflow.
  std::vector<std::array<uint64_t, 256>> histogram(channels);
  for (size_t i = 0; i < train.images.size(); i += channels) {
    for (size_t c = 0; c < channels; ++c) ++histogram[c][train.images[i + c]];
  }
  const double pixels = static_cast<double>(train.images.size() / channels);
  data.mean.assign(channels, 0.0f);
  data.std.assign(channels, 1.0f);
  for (size_t c = 0; c < channels; ++c) {
    uint64_t sum = 0, squares = 0;
    for (uint64_t value = 0; value < 256; ++value) {
      sum += histogram[c][value] * value;
      squares += histogram[c][value] * value * value;
    }
    const double mean = static_cast<double>(sum) / pixels;
    const double variance = std::max(0.0, static_cast<double>(squares) / pixels - mean * mean);
    data.mean[c] = static_cast<float>(mean / 255.0);
    if (variance > 0) data.std[c] = static_cast<float>(std::sqrt(variance) / 255.0);
  }
}

}  // namespace kiln
