// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c], dbias[k] = sum
// dy[n,p,q,k], on Hopper's tensor cores.
//
// Implicit GEMM whose sum runs over output pixels, see conv2d_wgrad_wgmma.cuh: TMA cuts the tiles and wgmma
// reads both across their rows. A tile's sum is cut into parts to fill the chip; each part writes fp32 sums
// to the workspace and a second kernel adds them in fixed order; dbias likewise. One block a multiprocessor,
// 177 to 225 KiB of shared memory. Config "128x256x64_s4_images": output channels x columns x pixels of a
// stage, stages; walk; "_c2": two blocks share a part; "_even": equal shares, in parts of several tiles.
// Needs compute capability 9.0, bf16, channels in multiples of 8. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgrad_wgmma.cuh"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"
#include "kernels/conv2d/conv2d_wgmma_gather.cuh"

namespace kiln {
namespace {

template <class Config>
double cost_of(const Conv2dProblem& p, WgradMode mode, const Device& device) {
  return WgradLayout<Config>(wgrad_walked(p, mode.walk), mode, device).cost;
}

Im2colMap im2col_map(const Conv2dProblem& p, const void* x, int channels, int pixels) {
  Im2colMap map = wgmma_im2col(p);
  map.base = x;
  map.channels = channels;
  map.pixels = pixels;
  return map;
}

// [n][h][w][c] with `pixel` elements from one pixel to the next; boxes of one position in `rows` images.
TiledMap<4> image_map(const void* base, int n, int h, int w, int c, uint64_t pixel, uint32_t channels,
                      uint32_t rows) {
  const uint64_t height = h, width = w;
  return {.base = base,
          .sizes = {static_cast<uint64_t>(c), width, height, static_cast<uint64_t>(n)},
          .strides = {pixel, pixel * width, pixel * width * height},
          .box = {channels, 1, 1, rows}};
}

CUtensorMap dy_map(const Conv2dProblem& p, WgradWalk walk, const void* dy, uint32_t pixels) {
  if (walk == WgradWalk::kImages)
    return make_tiled_map(image_map(dy, p.n, p.p(), p.q(), p.k, p.k, 64, pixels));
  const uint64_t k = p.k, rows = static_cast<uint64_t>(p.n) * p.p() * p.q();
  return make_tiled_map(TiledMap<4>{
      .base = dy, .sizes = {k, rows, 1, 1}, .strides = {k, k * rows, k * rows}, .box = {64, pixels, 1, 1}});
}

template <class Config>
CUtensorMap x_map(const Conv2dProblem& p, WgradWalk walk, const void* x) {
  if (walk == WgradWalk::kPixels) return make_im2col_map(im2col_map(p, x, Config::kSpan, Config::kBK));
  return make_tiled_map(image_map(x, p.n, p.h, p.w, p.c, p.x_channels(), Config::kSpan, Config::kBK));
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& problem, WgradMode mode, const Device& device) {
  const WgradWalk walk = mode.walk;
  const Conv2dProblem p = wgrad_walked(problem, walk);
  const WgradLayout<Config> layout(p, mode, device);
  const WgradWgmmaShape g = layout.shape;
  const int blocks = layout.blocks, parts = layout.parts, outputs = g.k * g.columns;
  const int pixels = p.n * p.p() * p.q();
  const bool early = p.r == 1 && p.s == 1;  // where setting up is a part of the time that counts
  const WgradRanges ranges(g, Config::kSpan);
  bool alike = true;  // column tiles have as many parts
  for (int i = 0; i < g.column_tiles; ++i) alike = alike && wgrad_tile_parts(g, i) == parts;
  const auto kernel = conv2d_wgrad_wgmma_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_wgrad_wgmma: shared memory");
  const Split bias_split = choose_split(pixels, 64, ceil_div(g.k, 32), 8LL * device.multiprocessors, g.k);
  const size_t bias_floats = p.bias ? static_cast<size_t>(bias_split.count) * g.k : 0;
  const size_t partial_floats = parts > 1 ? static_cast<size_t>(parts) * outputs : 0;
  return Plan<Conv2dWgrad::Args>(
      (partial_floats + bias_floats) * sizeof(float), [=](const Conv2dWgrad::Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const CUtensorMap dy = dy_map(p, walk, a.dy, Config::kBK), x = x_map<Config>(p, walk, a.x);
        float* dw = static_cast<float*>(a.dw);
        float* partial = static_cast<float*>(workspace);
        return Bound([=](Stream stream) {
          launch_kernel(kernel, "conv2d_wgrad_wgmma_kernel",
                        {.grid = static_cast<unsigned>(blocks),
                         .threads = Config::kThreads,
                         .shared_bytes = Config::kSmemBytes,
                         .cluster = g.pair,
                         .early = early},
                        stream, dy, x, partial, dw, g);
          if (parts > 1 && alike) sum_splits(partial, parts, outputs, dw, stream);
          if (parts > 1 && !alike) sum_ranges(partial, parts, ranges, outputs, dw, stream);
          if (a.dbias) {
            sum_rows(static_cast<const bf16*>(a.dy), pixels, g.k, bias_split, partial + partial_floats,
                     static_cast<float*>(a.dbias), stream);
          }
        });
      });
}

// A compiled tile shape with a mode: what follows "wgmma:" in a choice.
struct Candidate {
  std::string name;
  WgradMode mode;
  double (*cost)(const Conv2dProblem&, WgradMode, const Device&);
  Plan<Conv2dWgrad::Args> (*plan)(const Conv2dProblem&, WgradMode, const Device&);
};

template <class Config>
void add_candidates(std::vector<Candidate>& list) {
  const std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                           std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages);
  const auto add = [&](const std::string& end, WgradMode mode) {
    list.push_back({name + end, mode, cost_of<Config>, plan_for<Config>});
  };
  for (const WgradWalk walk : {WgradWalk::kPixels, WgradWalk::kImages}) {
    const std::string way = walk == WgradWalk::kPixels ? "_pixels" : "_images";
    add(way, {.walk = walk, .pair = 1, .even = false});
    add(way + "_c2", {.walk = walk, .pair = 2, .even = false});
    add(way + "_even", {.walk = walk, .pair = 1, .even = true});
  }
}

std::vector<Candidate> all_candidates() {
  std::vector<Candidate> list;
  add_candidates<WgradWgmmaConfig<2, 1, 1, 256, 64, 64, 4>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 1, 192, 64, 64, 5>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 2, 128, 64, 64, 4>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 1, 128, 64, 64, 6>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 1, 64, 64, 64, 8>>(list);
  add_candidates<WgradWgmmaConfig<1, 2, 1, 64, 64, 64, 8>>(list);
  add_candidates<WgradWgmmaConfig<1, 2, 1, 192, 64, 64, 4>>(list);
  add_candidates<WgradWgmmaConfig<1, 3, 1, 192, 64, 32, 5>>(list);
  add_candidates<WgradWgmmaConfig<1, 3, 1, 96, 32, 64, 4>>(list);
  return list;
}

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = all_candidates();
  return all;
}

// What is taken unasked: even shares never, pairs for deep 1x1 filters.
const Candidate& best_candidate(const Conv2dProblem& p, const Device& device) {
  const Candidate* best = nullptr;
  double best_cost = 0;
  for (const Candidate& tile : candidates()) {
    if (tile.mode.even || (tile.mode.pair > 1 && !wgrad_is_deep(p.r * p.s, p.c, p.k))) continue;
    const double cost = tile.cost(p, tile.mode, device) * (tile.mode.pair > 1 ? 1.07 : 1);  // a clear gain
    if (!best || cost < best_cost) best = &tile, best_cost = cost;
  }
  return *best;
}

// Those worth a trial: the best few of the cost model.
std::vector<std::string> trials(const Conv2dProblem& p, const Device& device) {
  constexpr size_t kMost = 14;
  std::vector<std::pair<double, const Candidate*>> by_cost;
  for (const Candidate& tile : candidates()) by_cost.emplace_back(tile.cost(p, tile.mode, device), &tile);
  std::stable_sort(by_cost.begin(), by_cost.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (const auto& [cost, tile] : by_cost) {
    if (names.size() < kMost && cost <= 2.5 * by_cost.front().first) names.push_back(tile->name);
  }
  return names;
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_wgmma = {
    .name = "wgmma",
    .supports = wgmma_gather_supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const Candidate* chosen = config.empty() ? &best_candidate(p, device) : nullptr;
          std::string known;
          for (const Candidate& tile : candidates()) {
            if (tile.name == config) chosen = &tile;
            known += (known.empty() ? "" : ", ") + tile.name;
          }
          if (!chosen)
            fail_usage("conv2d wgmma: unknown tile '" + std::string(config) + "'; known: " + known);
          if (!std::isfinite(chosen->cost(p, chosen->mode, device)))
            fail_usage("conv2d wgmma: the tile " + chosen->name + " does not take this problem");
          return chosen->plan(p, chosen->mode, device);
        },
    .configs = trials};

}  // namespace kiln
