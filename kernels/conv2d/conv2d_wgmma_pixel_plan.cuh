// Host side of the product by output pixels: the list of tiles of each block, tensor maps, the compiled tile
// shapes, their cost.
#pragma once

#include <limits>
#include <numeric>

#include "kernels/conv2d/conv2d_column_merge.cuh"
#include "kernels/conv2d/conv2d_wgmma_halo_plan.cuh"
#include "kernels/conv2d/conv2d_wgmma_pixel.cuh"
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

// Output positions [first, first + count) under which no tap of one axis leaves the source.
struct PixelSpan {
  int first, count;
};
inline PixelSpan inner_span(int out, int src, int taps, int stride, int origin) {
  const int first = std::min(out, ceil_div(std::max(0, -origin), stride));
  const int room = src - taps - origin;  // position * stride may be at most this
  return {first, room < 0 ? 0 : std::max(0, std::min(out, room / stride + 1) - first)};
}

template <class Config>
PixelShape pixel_shape(const WgmmaGather& gather) {
  const WgmmaShape& g = gather.shape;
  const PixelSpan h = inner_span(g.out_h, gather.src.h, g.r, g.stride_h, g.origin_h);
  const PixelSpan w = inner_span(g.out_w, gather.src.w, g.s, g.stride_w, g.origin_w);
  const int column_tiles = ceil_div(g.columns, Config::kBN);
  const int whole = gather.parity_h * gather.parity_w == 1;  // dgrad's strides: no pixel has all taps
  return {.images = gather.src.n,
          .out_h = g.out_h,
          .out_w = g.out_w,
          .src_h = gather.src.h,
          .src_w = gather.src.w,
          .src_c = g.src_c,
          .columns = g.columns,
          .r = g.r,
          .s = g.s,
          .stride_h = g.stride_h,
          .stride_w = g.stride_w,
          .origin_h = g.origin_h,
          .origin_w = g.origin_w,
          .parity_h = gather.parity_h,
          .parity_w = gather.parity_w,
          .column_tiles = column_tiles,
          .inner_h = whole * h.first,
          .inner_w = whole * w.first,
          .inner_rows = whole * h.count,
          .inner_cols = whole * w.count,
          .inner_tiles = whole * ceil_div(gather.src.n, Config::kBM) * column_tiles * h.count * w.count,
          .accumulate = g.accumulate};
}

// Clocks that a block is thought to take for a tile of `steps` stages, in the measure of wgmma_cost. With
// kPingPong the results leave under the other warpgroup's products, if those take as long; without, products
// pause from a tile's last to the next one's first.
template <class Config>
double pixel_tile_clocks(int steps, int column_tiles) {
  constexpr int kPasses = Config::kBN / Config::kStoreColumns;
  constexpr double kStores =
      (Config::kPingPong ? 400 : 800) + Config::kGroupRows * Config::kBN / 64 + 600 * (kPasses - 1);
  const double products = steps * wgmma_stage_clocks<Config>(column_tiles);
  return Config::kPingPong ? std::max(products, (products + kStores) / 2) : products + kStores;
}

struct PixelPlan {
  bool fits = false;
  int blocks = 0;
  double clocks = 0;  // of the block with the most work
  PixelSchedule schedule = {};
};

// Deals the tiles: whole rounds of those with all taps, the rest one by one, the longest first, to the block
// with the least work.
template <class Config>
PixelPlan pixel_plan(const WgmmaGather& gather) {
  PixelPlan plan;
  const PixelShape g = pixel_shape<Config>(gather);
  const long long tiles = 1LL * ceil_div(gather.src.n, Config::kBM) * g.column_tiles * g.out_h * g.out_w;
  const bool strided = gather.parity_h * gather.parity_w > 1;  // neighbours differ: no rounds of equal tiles
  if (tiles > (strided ? PixelSchedule::kMaxRest : 1 << 20)) return plan;
  const int count = static_cast<int>(tiles);
  plan.fits = true;
  plan.blocks = std::min({count, gather.multiprocessors, PixelSchedule::kMaxBlocks});
  const int classes = gather.stats ? g.column_tiles : 1;  // with statistics a block keeps to one column tile
  plan.blocks -= plan.blocks % classes;
  if (plan.blocks == 0) return PixelPlan();
  int rounds = g.inner_tiles / plan.blocks;
  if (count - rounds * plan.blocks > PixelSchedule::kMaxRest) {
    rounds = ceil_div(count - PixelSchedule::kMaxRest, plan.blocks);
  }
  const int slices = ceil_div(g.src_c, Config::kBK);
  const auto clocks = [&](int tile) {
    return pixel_tile_clocks<Config>(pixel_tile<Config>(g, tile).taps() * slices, g.column_tiles);
  };
  const int dealt = rounds * plan.blocks;
  std::vector<double> load(plan.blocks, 0.0);
  for (int tile = 0; tile < dealt; ++tile) load[tile % plan.blocks] += clocks(tile);
  std::vector<int> rest(count - dealt);
  std::iota(rest.begin(), rest.end(), dealt);
  std::stable_sort(rest.begin(), rest.end(), [&](int a, int b) { return clocks(a) > clocks(b); });
  std::vector<std::vector<uint16_t>> lists(plan.blocks);
  for (const int tile : rest) {
    int least = tile % classes;
    for (int block = least; block < plan.blocks; block += classes) {
      if (load[block] < load[least]) least = block;
    }
    load[least] += clocks(tile);
    lists[least].push_back(static_cast<uint16_t>(tile - dealt));
  }
  plan.clocks = *std::max_element(load.begin(), load.end());
  plan.schedule.rounds = rounds;
  int next = 0;
  for (int block = 0; block < plan.blocks; ++block) {
    for (const uint16_t tile : lists[block]) plan.schedule.rest[next++] = tile;
    plan.schedule.first[block + 1] = static_cast<uint16_t>(next);
  }
  return plan;
}

// Whether the fused kernel's registers have room beside the accumulators.
template <class Config>
constexpr bool kPixelFuses = Config::kMTiles* Config::kBN <= 256;

// Clocks of a launch whose busiest block has `clocks`: those, or the memory's at so many bytes a clock, which
// in part go on at the same time; and the first and the last tile.
inline double pixel_launch_clocks(const WgmmaGather& gather, double clocks) {
  const WgmmaShape& g = gather.shape;
  const double elements =
      1.0 * gather.src.n * gather.src.h * gather.src.w * g.src_c + 1.0 * g.rows * g.columns;
  return std::max(clocks, 2 * elements / 1700) + 0.05 * clocks + 1500;
}

// Whether what is behind the sum is not compiled for these tiles.
template <class Config>
bool pixel_lacks(const WgmmaGather& gather) {
  return gather.stats ? !(gather.sums && Config::kStats) : gather.fused && !kPixelFuses<Config>;
}

// What tiles are chosen by, and the clocks of their busiest block.
struct PixelCost {
  double cost, clocks;
};

// Tiles half empty of images are left to other kernels.
template <class Config>
PixelCost pixel_cost_and_clocks(const WgmmaGather& gather) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const PixelPlan plan = pixel_plan<Config>(gather);
  if (!plan.fits || pixel_lacks<Config>(gather)) return {kNever, kNever};
  return {pixel_launch_clocks(gather, plan.clocks), plan.clocks};
}

template <class Config>
double pixel_cost(const WgmmaGather& gather) {
  return pixel_cost_and_clocks<Config>(gather).cost;
}

template <class Config, bool kDgrad>
Bound pixel_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  const PixelPlan plan = pixel_plan<Config>(gather);
  if (!plan.fits) fail_usage("conv2d wgmma_pixel: too many tiles");
  if (pixel_lacks<Config>(gather)) fail_usage("conv2d wgmma_pixel: this tile takes no epilogue");
  const PixelShape shape = pixel_shape<Config>(gather);
  const Im2colMap& from = gather.src;
  const uint64_t n = from.n, h = from.h, w = from.w, pixel = from.channel_stride;
  const uint64_t columns = shape.columns, out_h = shape.out_h, out_w = shape.out_w;
  const CUtensorMap src = make_tiled_map(TiledMap<4>{.base = buffers.src,
                                                     .sizes = {static_cast<uint64_t>(from.c), w, h, n},
                                                     .strides = {pixel, pixel * w, pixel * w * h},
                                                     .box = {Config::kBK, 1, 1, Config::kBM}});
  const CUtensorMap filter = wgmma_filter_map<Config, kDgrad>(gather, buffers.filter);
  const auto out_map = [&](const void* base) {
    return make_tiled_map(TiledMap<4>{.base = base,
                                      .sizes = {columns, out_w, out_h, n},
                                      .strides = {columns, columns * out_w, columns * out_w * out_h},
                                      .box = {Config::kColumnSpan, 1, 1, Config::kGroupRows}});
  };
  const auto bound = [&]<class Tiles = Config, bool kFused>(const StagedEpilogue<kFused>& fused) {
    return Bound(
        [=, out = out_map(buffers.out), blocks = plan.blocks, schedule = plan.schedule](Stream stream) {
          conv2d_pixel_wgmma_kernel<Tiles, kDgrad, kFused>
              <<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(
                  src, filter, out, static_cast<const float*>(buffers.bias), fused, shape, schedule);
          check_launch("conv2d_pixel_wgmma_kernel");
        });
  };
  StagedEpilogue<false> plain = {};
  if constexpr (!kDgrad && Config::kStats) {
    if (gather.stats) {
      plain.partials = column_partials<Config>(buffers, plan.blocks, shape.column_tiles);
      return with_column_merge<Config>(bound.template operator()<CountedTiles<Config>>(plain), plain.partials,
                                       gather, buffers);
    }
  }
  if constexpr (!kDgrad && kPixelFuses<Config>) {
    if (gather.fused) {  // a map needs an address
      return bound(
          StagedEpilogue<true>{.residual = out_map(buffers.residual ? buffers.residual : buffers.out),
                               .of = wgmma_epilogue(gather, buffers)});
    }
  }
  if (kDgrad && gather.act != ActKind::kNone) {
    plain = {.x = out_map(buffers.gate), .gated = true, .gate = conv2d_gate(gather.act)};
  }
  return bound(plain);
}

// Named "128x256x64_s4", with tiles of one warpgroup in turns "128x128x64_s6_pp".
template <class Config, bool kDgrad>
WgmmaCandidate pixel_candidate() {
  std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                     std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages);
  if (Config::kPingPong) name += "_pp";
  return {name, true, pixel_cost<Config>,
          [] {
            const auto allow = [](auto* kernel) {
              check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              Config::kSmemBytes),
                         "conv2d_pixel_wgmma: shared memory");
            };
            allow(conv2d_pixel_wgmma_kernel<Config, kDgrad, false>);
            if constexpr (!kDgrad && kPixelFuses<Config>)
              allow(conv2d_pixel_wgmma_kernel<Config, kDgrad, true>);
            if constexpr (!kDgrad && Config::kStats)
              allow(conv2d_pixel_wgmma_kernel<CountedTiles<Config>, false, false>);
          },
          pixel_bind<Config, kDgrad>};
}

template <class... Configs>
struct PixelList {
  template <bool kDgrad>
  static const std::vector<WgmmaCandidate>& candidates() {
    static const std::vector<WgmmaCandidate> all = {pixel_candidate<Configs, kDgrad>()...};
    return all;
  }
  static PixelCost least(const WgmmaGather& gather) {
    return std::min({pixel_cost_and_clocks<Configs>(gather)...},
                    [](const PixelCost& a, const PixelCost& b) { return a.cost < b.cost; });
  }
};

using PixelTiles = PixelList<PixelConfig<128, 256, 3, false>, PixelConfig<128, 256, 4, false>,
                             PixelConfig<256, 128, 3, false>, PixelConfig<128, 128, 6, true>,
                             PixelConfig<192, 128, 4, true>, PixelConfig<256, 64, 4, true>>;

// Beyond the rules of the gathered product.
inline Support pixel_supports(const WgmmaGather& gather) {
  return Support::require(std::isfinite(PixelTiles::least(gather).cost), "too many tiles");
}

// launch_clocks of the tiles that are chosen. The lists of tiles lie in its start; rows of a tile are far
// apart in memory, which moves whole lines for them.
inline double pixel_compared_clocks(const WgmmaGather& gather) {
  return launch_clocks(3100, 0.95 * PixelTiles::least(gather).clocks, wgmma_bytes(gather, 128));
}

// Whether it is thought to beat the product that gathers its source for every tap, and the one whose taps
// share copies of it. One tap never lies on padding: then only where tiles are full of images.
inline bool pixel_preferred(const WgmmaGather& gather) {
  const WgmmaShape& g = gather.shape;
  if (g.r * g.s == 1 && gather.src.n < 128) return false;
  double gathered = wgmma_least_cost(gather), shared = std::numeric_limits<double>::infinity();
  if (g.stride_h == 1 && g.stride_w == 1 && g.r * g.s > 1) {
    gathered = std::min(gathered, sweep_compared_cost(gather));
    if (halo_serves(g)) shared = halo_least_cost(gather);
  }
  return pixel_compared_clocks(gather) <
         std::min(with_moments(gather, gathered_launch_clocks(gather, gathered)),
                  gathered_launch_clocks(gather, shared));
}

}  // namespace kiln
