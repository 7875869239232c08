// Host side of linear's wgmma product: tensor maps, the compiled tiles, the choice of a tile and of the parts
// of the sum.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/tensor_map.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_split.h"
#include "kernels/linear/linear_wgmma.cuh"

namespace kiln {

// A pass as a product, out[rows,columns] over a sum of `terms`, and its tensors.
struct LinearProduct {
  int rows, columns, terms;
  bool f32_out;
};
struct LinearOperands {
  const void* a;
  const void* b;
  const void* bias;
  void* out;
  void* row_sums;
};

inline Support linear_wgmma_supports(const LinearProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  return Support::require(p.c % 8 == 0 && p.k % 8 == 0, "features must be multiples of 8 (TMA's row pitch)");
}

// Small products are over before a ring of tiles is full.
inline bool linear_wgmma_preferred(const LinearProblem& p, const Device&) {
  return p.n >= 64 && p.c >= 64 && p.k > 32 && p.macs() > kLinearSmallMacs;
}

template <class Config>
LinearWgmmaShape linear_wgmma_shape(const LinearProduct& g, int splits) {
  return {.rows = g.rows,
          .columns = g.columns,
          .steps = ceil_div(g.terms, Config::kBK),
          .row_tiles = ceil_div(g.rows, Config::kBM),
          .column_tiles = ceil_div(g.columns, Config::kBN),
          .splits = splits,
          .f32_out = g.f32_out,
          .partial_stride = static_cast<long long>(LinearSplit{g.rows, g.columns, splits}.stride())};
}

// Clocks that the launches are thought to take: waves of items, each as long as its products or its reads of
// L2, and its stores; then the sum over parts. Only ratios matter; the constants are the H100's (4096 FLOP,
// about 38 bytes of L2 a clock and multiprocessor; narrow products run below the full rate).
template <class Config>
double linear_wgmma_cost(const LinearProduct& g, int splits, const Device& device) {
  constexpr double kRate = Config::kBN >= 256 ? 1.0 : Config::kBN >= 128 ? 0.92 : 0.85;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  constexpr double kStep = std::max(kProducts, Config::kStageBytes / 38.0);
  const LinearWgmmaShape shape = linear_wgmma_shape<Config>(g, splits);
  const long long items = 1LL * shape.row_tiles * shape.column_tiles * splits;
  const double waves = static_cast<double>(ceil_div(items, device.multiprocessors));
  const bool f32 = g.f32_out || splits > 1;
  const double stores = 600 + Config::kBM * Config::kBN * (f32 ? 4 / 20.0 : 2 / 38.0);
  const double sum =
      splits > 1 ? 5000 + 4.0 * (splits + 1) * g.rows * g.columns / (15.0 * device.multiprocessors) : 0;
  return waves * (ceil_div(shape.steps, splits) * kStep + stores) + sum;
}

// A packed matrix [outer, inner], in boxes of 64 inner x `box` outer.
inline CUtensorMap linear_map(const void* base, int inner, int outer, int box) {
  const uint64_t width = inner, height = outer;
  return make_tiled_map(TiledMap<3>{.base = base,
                                    .sizes = {width, height, 1},
                                    .strides = {width, width * height},
                                    .box = {64, static_cast<uint32_t>(box), 1}});
}

template <class Config>
Bound linear_wgmma_bind(const LinearProduct& product, int splits, const Device& device,
                        const LinearOperands& o, void* workspace) {
  const LinearWgmmaShape g = linear_wgmma_shape<Config>(product, splits);
  const CUtensorMap a = Config::kAAcross ? linear_map(o.a, g.rows, product.terms, Config::kBK)
                                         : linear_map(o.a, product.terms, g.rows, Config::kBM);
  const CUtensorMap b = Config::kBAcross ? linear_map(o.b, g.columns, product.terms, Config::kBK)
                                         : linear_map(o.b, product.terms, g.columns, Config::kBN);
  const auto* bias = static_cast<const float*>(o.bias);
  auto* row_sums = static_cast<float*>(o.row_sums);
  auto* partial = static_cast<float*>(workspace);
  const long long items = 1LL * g.row_tiles * g.column_tiles * splits;
  const unsigned blocks = static_cast<unsigned>(std::min<long long>(items, device.multiprocessors));
  return Bound([=](Stream stream) {
    linear_wgmma_kernel<Config><<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(
        a, b, bias, o.out, row_sums, partial, g);
    check_launch("linear_wgmma_kernel");
    if (g.splits > 1) {
      linear_sum_splits(partial, LinearSplit{g.rows, g.columns, g.splits}, bias, o.out,
                        g.f32_out ? DType::kF32 : DType::kBF16, row_sums, stream);
    }
  });
}

// A compiled tile.
struct LinearTile {
  std::string name;  // "128x256"
  double (*cost)(const LinearProduct&, int splits, const Device&);
  void (*prepare)();
  Bound (*bind)(const LinearProduct&, int splits, const Device&, const LinearOperands&, void* workspace);
};

template <class Config>
LinearTile linear_tile_of() {
  std::string name = std::to_string(Config::kBM);
  name.append("x").append(std::to_string(Config::kBN));
  return {name, linear_wgmma_cost<Config>,
          [] {
            check_cuda(cudaFuncSetAttribute(linear_wgmma_kernel<Config>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
                       "linear_wgmma: shared memory");
          },
          linear_wgmma_bind<Config>};
}

template <bool kAAcross, bool kBAcross>
const std::vector<LinearTile>& linear_tiles() {
  static const std::vector<LinearTile> all = {
      linear_tile_of<LinearWgmmaConfig<128, 256, 4, kAAcross, kBAcross>>(),
      linear_tile_of<LinearWgmmaConfig<256, 128, 4, kAAcross, kBAcross>>(),
      linear_tile_of<LinearWgmmaConfig<128, 128, 6, kAAcross, kBAcross>>(),
      linear_tile_of<LinearWgmmaConfig<128, 64, 8, kAAcross, kBAcross>>()};
  return all;
}

// A tile with a number of parts: what follows "wgmma:" in a choice, "128x256_split2".
struct LinearChoice {
  const LinearTile* tile;
  int splits;
  double cost;
  std::string name() const { return tile->name + "_split" + std::to_string(splits); }
};

// All of them, the least cost first.
inline std::vector<LinearChoice> linear_choices(const std::vector<LinearTile>& tiles, const LinearProduct& g,
                                                const Device& device) {
  const int steps = ceil_div(g.terms, 64);
  const int least = linear_least_splits(g.terms, 64, 5120, g.f32_out);
  const int most = std::min(steps, std::max(least, linear_most_splits(g.rows, g.columns)));
  std::vector<LinearChoice> list;
  for (const LinearTile& tile : tiles) {
    for (int splits = least; splits <= most; ++splits) {
      list.push_back({&tile, splits, tile.cost(g, splits, device)});
    }
  }
  std::stable_sort(list.begin(), list.end(), [](const auto& x, const auto& y) { return x.cost < y.cost; });
  return list;
}

// Those worth a trial.
inline std::vector<std::string> linear_wgmma_configs(const std::vector<LinearTile>& tiles,
                                                     const LinearProduct& g, const Device& device) {
  std::vector<std::string> names;
  for (const LinearChoice& choice : linear_choices(tiles, g, device)) {
    if (names.size() < 6) names.push_back(choice.name());
  }
  return names;
}

// The plan of a pass: `operands(args)` names its tensors.
template <class Args>
Plan<Args> linear_wgmma_plan(const std::vector<LinearTile>& tiles, const LinearProduct& g,
                             const Device& device, std::string_view config,
                             LinearOperands (*operands)(const Args&)) {
  const std::vector<LinearChoice> choices = linear_choices(tiles, g, device);
  const auto chosen = std::find_if(choices.begin(), choices.end(), [&](const LinearChoice& choice) {
    return config.empty() || choice.name() == config;
  });
  if (chosen == choices.end()) {
    fail_usage("unknown config '" + std::string(config) + "'; the best here is " + choices.front().name());
  }
  chosen->tile->prepare();
  const LinearSplit split = {.rows = g.rows, .columns = g.columns, .count = chosen->splits};
  return Plan<Args>(split.workspace_bytes(), [g, device, splits = chosen->splits, bind = chosen->tile->bind,
                                              operands](const Args& args, void* workspace) {
    require_aligned_args(&args, sizeof args);
    return bind(g, splits, device, operands(args), workspace);
  });
}

}  // namespace kiln
