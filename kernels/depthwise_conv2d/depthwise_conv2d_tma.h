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

// What a byte costs that is loaded or stored in slices of `line` bytes of a pixel's channels, against whole
// lines of memory: lines, atoms of 64 bytes and sectors are shared with the next slice. Fitted to what an
// H100 measures; it stores half lines the fastest.
constexpr double tma_line_cost(int line, int pixel_bytes, bool stored) {
  if (line == pixel_bytes || line % 128 == 0) return 1;
  if (line % 64 == 0 && pixel_bytes % 128 == 0) return line > 64 ? 1.02 : stored ? 0.76 : 1;
  if (line % 64 == 0) return 1.13;
  return line % 32 == 0 ? 1.2 : 1.35;
}

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
