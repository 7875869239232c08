// What the plans of the tma_tile and the tma_rows kernels of depthwise_conv2d share: the limits of the copy
// engine and of shared memory, and how a config is written and read.
#pragma once

#include <charconv>
#include <span>
#include <string>
#include <string_view>

#include "kernels/common/grid.h"

namespace kiln {

constexpr int kTmaMostSmem = 227 * 1024;  // of a block, bytes
constexpr int kTmaMostBox = 256;          // pixels or elements along a side of what one load copies
constexpr int kTmaLeastLine = 64;         // bytes of a slice of channels, where there are several
constexpr int kTmaAlignment = 128;        // of a load's destination

constexpr int round_up(int v, int unit) { return ceil_div(v, unit) * unit; }

// A number of a Choice as its config shows it: "c64", "_h8".
template <class Choice>
struct TmaConfigField {
  using Member = int Choice::*;
  std::string_view name;
  Member value;
};

template <class Choice>
std::string tma_config_text(const Choice& choice, std::span<const TmaConfigField<Choice>> fields) {
  std::string text;
  for (const auto& [name, value] : fields) text.append(name).append(std::to_string(choice.*value));
  return text;
}

// False where `text` is not all of the fields in their order, each above 0.
template <class Choice>
bool read_tma_config(std::string_view text, std::span<const TmaConfigField<Choice>> fields, Choice& choice) {
  for (const auto& [name, value] : fields) {
    if (!text.starts_with(name)) return false;
    text.remove_prefix(name.size());
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), choice.*value);
    if (error != std::errc() || choice.*value <= 0) return false;
    text.remove_prefix(static_cast<size_t>(stop - text.data()));
  }
  return text.empty();
}

}  // namespace kiln
