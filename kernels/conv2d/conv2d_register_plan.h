// Host side of register_tile and register_tma: what they take, and the choice among the tiles that a pass is
// compiled for.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/error.h"
#include "kernels/common/grid.h"
#include "kernels/common/impl.h"
#include "kernels/conv2d/conv2d.h"

namespace kiln {

// One compiled tile of a pass; its name is its config.
template <class Pass>
struct RegisterCandidate {
  const char* name;
  int m, n, threads, blocks;  // the block's tile; blocks wanted on a multiprocessor
  double speed;               // of a full multiprocessor, relative to the other tiles
  Plan<typename Pass::Args> (*plan)(const Conv2dProblem&, const Device&);
};

template <class Pass, class Tile>
constexpr RegisterCandidate<Pass> register_candidate(const char* name, double speed,
                                                     Plan<typename Pass::Args> (*plan)(const Conv2dProblem&,
                                                                                       const Device&)) {
  return {name, Tile::kM, Tile::kN, Tile::kThreads, Tile::kBlocks, speed, plan};
}

// The rules of all passes: cp.async moves four channels of one tap, and the taps of a pixel are 15 + 15 bits.
inline Support register_tile_supports(const Conv2dProblem& p) {
  if (p.dtype != DType::kF32) return Support::no("dtype must be fp32");
  if (p.c % 4 != 0) return Support::no("input channels must be a multiple of 4");
  return Support::require(p.r <= 15 && p.s <= 15, "filter sides must be at most 15");
}

// Results that the busiest multiprocessor works out, padding counted, over the tile's speed. Below eight
// warps on a multiprocessor its schedulers wait for shared memory. `splits`: the sum is cut so that the GPU
// fills.
template <class Pass>
double register_cost(const RegisterCandidate<Pass>& tile, long long rows, int columns, bool splits,
                     const Device& device) {
  const double area = 1.0 * tile.m * tile.n / tile.speed;
  const long long tiles = ceil_div(rows, tile.m) * ceil_div(columns, tile.n);
  if (splits) return area * static_cast<double>(tiles);
  const long long busiest = ceil_div(tiles, device.multiprocessors);
  const double warps = std::min<long long>(busiest, tile.blocks) * tile.threads / 32.0;
  return area * static_cast<double>(busiest) * std::max(1.0, 8 / warps);
}

// The candidate that `config` names, else the cheapest for rows x columns results.
template <class Pass>
const RegisterCandidate<Pass>& choose_register_tile(std::span<const RegisterCandidate<Pass>> tiles,
                                                    long long rows, int columns, bool splits,
                                                    const Device& device, std::string_view config,
                                                    std::string_view impl = "register_tile") {
  for (const auto& tile : tiles) {
    if (tile.name == config) return tile;
  }
  if (!config.empty()) {
    std::string message = "conv2d: unknown config '";
    message.append(config).append("' of ").append(impl).append("; known:");
    for (const auto& tile : tiles) message.append(" ").append(tile.name);
    fail_usage(message);
  }
  return *std::ranges::min_element(tiles, {}, [&](const RegisterCandidate<Pass>& tile) {
    return register_cost(tile, rows, columns, splits, device);
  });
}

// register_cost of the tile that register_tile takes unasked (one multiprocessor's results; speeds relative
// to its 128x64), for those who choose between it and register_tma.
double register_tile_fwd_cost(const Conv2dProblem& p, const Device& device);
double register_tile_dgrad_cost(const Conv2dProblem& p, const Device& device);

// The tiles that are not mostly padding.
template <class Pass>
std::vector<std::string> register_configs(std::span<const RegisterCandidate<Pass>> tiles, int columns) {
  std::vector<std::string> names;
  for (const auto& tile : tiles) {
    if (tile.n < 2 * columns) names.emplace_back(tile.name);
  }
  return names;
}

}  // namespace kiln
