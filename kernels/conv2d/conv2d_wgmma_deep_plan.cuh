// Host side of the 1x1 product with a long reduction: which problems it takes, tensor maps, the compiled
// tiles and the choice among them. Plans are those of conv2d_wgmma_plan.cuh.
#pragma once

#include "kernels/conv2d/conv2d_wgmma_deep.cuh"
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

template <class Config>
DeepShape deep_shape(const WgmmaShape& g) {
  const int column_tiles = ceil_div(g.columns, Config::kBN);
  return {.rows = g.rows,
          .columns = g.columns,
          .slices = ceil_div(g.src_c, Config::kBK),
          .column_tiles = column_tiles,
          .tiles = ceil_div(g.rows, Config::kBM) * column_tiles};
}

// Clocks of a launch, in the measure of pointwise_cost: turns of tiles, each as long as its products or the
// bytes of device memory and of L2 together, and the last one's stores. A block with one tile reads L2 at
// what its multiprocessor takes, once the first copy has arrived; with several all share L2's rate.
template <class Config>
double deep_cost(const WgmmaGather& gather) {
  const DeepShape g = deep_shape<Config>(gather.shape);
  const int blocks = std::min(g.tiles, gather.multiprocessors), turns = ceil_div(g.tiles, blocks);
  const double products = g.slices * (Config::kBK / 16) * (Config::kBM / 64) * (Config::kBN / 2.0);
  const double source = 2.0 * Config::kBM * gather.shape.src_c, filter = 1.0 * g.slices * Config::kBBytes;
  const double results = 2.0 * Config::kBM * std::min(g.columns, Config::kBN);
  const double memory =
      (source / g.column_tiles + results) / std::min(38.0, 13.4 * gather.multiprocessors / blocks);
  const double l2 = turns == 1 ? (source + filter) / 64 + 600 : (source + filter) / 48;
  return turns * std::max(products, std::hypot(memory, l2)) + 4.0 * Config::kBN;
}

// Whether this tile is thought to beat the other implementations: a long reduction, no part of a tile
// without columns, and the last turn's blocks nearly all at work. In dgrad a slice of the filter is several
// boxes, which a long chain of slices waits for; wide tiles only pay off where copies run on into a next
// tile.
template <class Config, bool kDgrad>
bool deep_wins(const WgmmaGather& gather) {
  const DeepShape g = deep_shape<Config>(gather.shape);
  const int places = gather.multiprocessors, turns = ceil_div(g.tiles, places);
  if (gather.shape.src_c < 512 || g.columns % Config::kBN || 10LL * g.tiles < 9LL * places * turns) {
    return false;
  }
  if (Config::kHalves == 2) return turns > 1;
  if (Config::kBN == 160) return Config::kGroups == 2 || turns == 1;
  return kDgrad ? turns == 1 && g.slices <= 8 : turns <= 2;
}

template <class Config, bool kDgrad>
Bound deep_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  const DeepShape g = deep_shape<Config>(gather.shape);
  const uint64_t rows = g.rows, pixel = gather.src.channel_stride;
  const uint64_t c = gather.filter_c, k = gather.filter_k;
  const CUtensorMap src = make_tiled_map(TiledMap<3>{.base = buffers.src,
                                                     .sizes = {static_cast<uint64_t>(gather.src.c), rows, 1},
                                                     .strides = {pixel, pixel * rows},
                                                     .box = {Config::kBK, Config::kBM, 1}});
  constexpr uint32_t kInner = kDgrad ? Config::kSpan : Config::kBK;
  constexpr uint32_t kOuter = kDgrad ? Config::kBK : Config::kBN;
  const CUtensorMap filter = make_tiled_map(TiledMap<3>{
      .base = buffers.filter, .sizes = {c, k, 1}, .strides = {c, c * k}, .box = {kInner, kOuter, 1}});
  return Bound([=, out = static_cast<bf16*>(buffers.out),
                blocks = std::min(g.tiles, gather.multiprocessors)](Stream stream) {
    launch_kernel(conv2d_deep_wgmma_kernel<Config, kDgrad>, "conv2d_deep_wgmma_kernel",
                  {.grid = static_cast<unsigned>(blocks),
                   .threads = Config::kThreads,
                   .shared_bytes = Config::kSmemBytes,
                   .early = true},
                  stream, src, filter, out, g);
  });
}

template <class Config, bool kDgrad>
WgmmaCandidate deep_candidate() {
  return {std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "_s" +
              std::to_string(Config::kStages),
          true, deep_cost<Config>,
          [] {
            check_cuda(cudaFuncSetAttribute(conv2d_deep_wgmma_kernel<Config, kDgrad>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
                       "conv2d_deep_wgmma: shared memory");
          },
          deep_bind<Config, kDgrad>};
}

// A pass's tiles.
template <bool kDgrad, class... Configs>
struct DeepTiles {
  static const std::vector<WgmmaCandidate>& candidates() {
    static const std::vector<WgmmaCandidate> all = {deep_candidate<Configs, kDgrad>()...};
    return all;
  }
  static bool preferred(const WgmmaGather& gather) { return (deep_wins<Configs, kDgrad>(gather) || ...); }
};

// Beyond the rules of the gathered product.
inline Support deep_supports(const Conv2dProblem& p) {
  if (p.r != 1 || p.s != 1) return Support::no("the filter must be 1x1");
  if (p.stride_h != 1 || p.stride_w != 1 || p.pad_h || p.pad_w) {
    return Support::no("stride must be 1, padding 0");
  }
  return Support::require(p.c > 32 && p.k > 32, "it needs more than 32 channels on both sides");
}

}  // namespace kiln
