// Host side of the pointwise product: shared memory and the staging tile's layout, tensor maps, the compiled
// tiles and the choice among them. Plans are those of conv2d_wgmma_plan.cuh.
#pragma once

#include <limits>

#include "kernels/conv2d/conv2d_column_merge.cuh"
#include "kernels/conv2d/conv2d_pointwise.cuh"
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

// What becomes of the filter: see conv2d_pointwise.cuh.
enum class PointwiseFilter { kResident, kStreamed, kSplit };

// Whether the fused kernel is compiled: two blocks leave it too few registers.
template <class Config>
constexpr bool kPointwiseFuses = Config::kBlocks == 1;

struct PointwiseLayout {
  bool fits = false;
  PointwiseShape shape = {};
  int blocks = 0;
  int smem_bytes = 0;
};

// How many of the eight addresses of a staging tile's 8x8 matrix share banks, summed over its matrices.
inline int staging_conflicts(int pitch, int swizzle) {
  int sum = 0;
  for (int matrix = 0; matrix < 8 * pitch; ++matrix) {
    int most = 0, hits[8] = {};
    for (int row = 0; row < 8; ++row) {
      const int place = (matrix / pitch * 8 + row) * pitch + matrix % pitch;
      most = std::max(most, ++hits[(place ^ ((place >> 3) & swizzle)) % 8]);
    }
    sum += most;
  }
  return sum;
}

template <class Config, PointwiseFilter kFilter>
PointwiseLayout pointwise_layout(const WgmmaGather& gather) {
  const WgmmaShape& g = gather.shape;
  PointwiseLayout layout;
  PointwiseShape& shape = layout.shape;
  shape.rows = g.rows;
  shape.columns = g.columns;
  shape.slices = ceil_div(g.src_c, Config::kBK);
  shape.row_tiles = ceil_div(g.rows, Config::kBM);
  shape.column_tiles = ceil_div(g.columns, Config::kBN);
  shape.splits = kFilter == PointwiseFilter::kSplit ? 2 : 1;
  shape.resident = kFilter == PointwiseFilter::kResident;
  shape.accumulate = g.accumulate;
  shape.linear = shape.column_tiles == 1 && g.rows % Config::kGroupRows == 0;
  if (shape.linear) {
    shape.pitch = g.columns / 8;
    shape.box_shift = 8;  // beyond every chunk
    shape.swizzle = staging_conflicts(shape.pitch, 7) < staging_conflicts(shape.pitch, 0) ? 7 : 0;
  } else {
    shape.pitch = Config::kSpan / 8;
    shape.box_shift = Config::kSpan == 64 ? 3 : 2;
    shape.swizzle = Config::kSpan == 64 ? 7 : 3;
  }
  const int column_blocks = std::clamp(gather.multiprocessors * Config::kBlocks / shape.column_tiles, 1,
                                       shape.row_tiles);  // at work on one column tile
  layout.blocks = shape.column_tiles * shape.splits * (shape.splits > 1 ? shape.row_tiles : column_blocks);
  // A block with one tile needs no second staging tile; with a cluster one warpgroup of a block stores.
  const bool one_tile = shape.splits > 1 || column_blocks == shape.row_tiles;
  shape.staging_bytes = Config::kGroupRows * 2 * (shape.linear ? g.columns : Config::kBN);
  shape.group_bytes = shape.splits > 1 ? 0 : (one_tile ? 1 : 2) * shape.staging_bytes;
  const int all_staging = std::max(Config::kGroups * shape.group_bytes, shape.staging_bytes);
  shape.ring = shape.resident ? shape.slices * Config::kBBytes : 0;
  shape.stage_bytes = Config::kABytes + (shape.resident ? 0 : Config::kBBytes);
  const long long room =
      Config::kSmemBytes - Config::kAlignment - Config::kBarrierBytes - all_staging - 1LL * shape.ring;
  shape.stages = static_cast<int>(std::clamp<long long>(room / shape.stage_bytes, 0, Config::kMaxStages));
  shape.staging = shape.ring + shape.stages * shape.stage_bytes;
  shape.barriers = shape.staging + all_staging;
  layout.smem_bytes = shape.barriers + Config::kBarrierBytes + Config::kAlignment;
  const bool exchange_fits =
      shape.splits == 1 ||
      (shape.slices > 1 && shape.stages * shape.stage_bytes >= Config::kGroupRows * Config::kBN * 4);
  layout.fits = shape.stages >= 3 && exchange_fits && (Config::kBK == 32) == (g.src_c <= 32);
  return layout;
}

// Clocks of L2 reads of a block's only tile: 64 bytes a clock, what one multiprocessor takes, if enough bytes
// are under way to cover the 2200 clocks from a copy's start to the refilling of its stage; and the way of
// the first copy, which nothing hides. Next to it a ring of few stages, beside a filter that stays, is slow.
template <class Config>
double pointwise_only_tile_reads(double bytes, int stages) {
  return bytes / std::min(64.0, stages * (Config::kABytes + Config::kBBytes) / 2200.0) + 600;
}

// Clocks that a launch is thought to take; only ratios matter. The constants are the H100's: a
// multiprocessor's share of device memory, of L2, products of 4096 FLOP a clock; a tile's stores run under
// the next tile's copies, but for the last; dgrad's, and those that are counted, take longer where a tile has
// a short piece of a row; a pair's exchange is 3500 clocks and the store of its half.
template <class Config, PointwiseFilter kFilter, bool kDgrad>
double pointwise_cost(const WgmmaGather& gather) {
  const PointwiseLayout layout = pointwise_layout<Config, kFilter>(gather);
  if (!layout.fits || (gather.fused && !kPointwiseFuses<Config>))
    return std::numeric_limits<double>::infinity();
  const bool counts =
      gather.sums && Config::kStats && layout.blocks <= wgmma_stats_blocks(gather.multiprocessors);
  if (gather.stats && !counts) return std::numeric_limits<double>::infinity();
  const PointwiseShape& g = layout.shape;
  const int places = gather.multiprocessors * Config::kBlocks, active = std::min(layout.blocks, places);
  const double waves =
      g.splits > 1 ? ceil_div(layout.blocks, places) : ceil_div(g.row_tiles, layout.blocks / g.column_tiles);
  const int slices = ceil_div(g.slices, g.splits);
  const double products = slices * Config::kBK / 16 * 2 * std::max(24, Config::kBN / 2) * Config::kBlocks;
  constexpr double kL2Rate = 38.0 / Config::kBlocks;
  const double source = 2.0 * Config::kBM * gather.shape.src_c / g.splits;
  const double filter = 1.0 * slices * Config::kBBytes;
  const double results = 2.0 * Config::kBM * std::min(g.columns, Config::kBN) / g.splits;
  const double memory =
      (source / g.column_tiles + results) / std::min(kL2Rate, 13.4 * gather.multiprocessors / active);
  const bool only_tile = waves == 1 && Config::kBlocks == 1;
  const double l2 =
      only_tile ? pointwise_only_tile_reads<Config>(source + filter, g.stages) : (source + filter) / kL2Rate;
  const double later_l2 = g.resident ? source / kL2Rate : l2;
  const double exchange = g.splits > 1 ? 3500 + Config::kGroupRows * Config::kBN * 4 / 64.0 : 0;
  const bool pieces = (kDgrad ? Config::kBN <= 64 : gather.stats && Config::kBN == 32) && g.column_tiles > 1;
  const double stores = (pieces ? 9600.0 / Config::kBN : 0) + Config::kBN * 4 + exchange;
  const double last = Config::kBN * 8;
  return std::max(products, std::hypot(memory, l2)) +
         (waves - 1) * std::max(products, std::hypot(memory, later_l2)) + waves * stores + last;
}

// Maps of two dimensions with a third (and fourth) of one index.
template <class Config, bool kDgrad>
CUtensorMap pointwise_filter_map(const WgmmaGather& gather, const void* filter) {
  const uint64_t c = gather.filter_c, k = gather.filter_k;
  constexpr uint32_t kInner = kDgrad ? Config::kSpan : Config::kBK;
  constexpr uint32_t kOuter = kDgrad ? Config::kBK : Config::kBN;
  return make_tiled_map(
      TiledMap<3>{.base = filter, .sizes = {c, k, 1}, .strides = {c, c * k}, .box = {kInner, kOuter, 1}});
}

template <class Config>
CUtensorMap pointwise_out_map(const PointwiseShape& g, int rows, const void* out) {
  const uint64_t width = g.linear ? 64 : g.columns;
  const uint64_t height = g.linear ? static_cast<uint64_t>(rows) / 64 * g.columns : rows;
  const uint32_t box_width = g.linear ? 64 : Config::kSpan;
  const uint32_t box_height = g.linear ? g.columns : Config::kGroupRows;
  if (g.swizzle == 0) {
    return make_dense_map(DenseMap{.base = out,
                                   .element_bytes = 2,
                                   .sizes = {width, height, 1, 1},
                                   .box = {box_width, box_height, 1, 1}});
  }
  return make_tiled_map(TiledMap<4>{.base = out,
                                    .sizes = {width, height, 1, 1},
                                    .strides = {width, width * height, width * height},
                                    .box = {box_width, box_height, 1, 1}});
}

template <class Config, PointwiseFilter kFilter, bool kDgrad>
Bound pointwise_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  const PointwiseLayout layout = pointwise_layout<Config, kFilter>(gather);
  if (!layout.fits) fail_usage("conv2d pointwise: this tile does not fit the channels");
  const uint64_t rows = gather.shape.rows, pixel = gather.src.channel_stride;
  const CUtensorMap src = make_tiled_map(TiledMap<3>{.base = buffers.src,
                                                     .sizes = {static_cast<uint64_t>(gather.src.c), rows, 1},
                                                     .strides = {pixel, pixel * rows},
                                                     .box = {Config::kBK, Config::kBM, 1}});
  const CUtensorMap filter = pointwise_filter_map<Config, kDgrad>(gather, buffers.filter);
  const CUtensorMap out = pointwise_out_map<Config>(layout.shape, gather.shape.rows, buffers.out);
  const auto bound = [&]<class Tiles = Config, bool kFused>(const StagedEpilogue<kFused>& fused) {
    return Bound([=](Stream stream) {
      launch_kernel(conv2d_pointwise_kernel<Tiles, kDgrad, kFused>, "conv2d_pointwise_kernel",
                    {.grid = static_cast<unsigned>(layout.blocks),
                     .threads = Config::kThreads,
                     .shared_bytes = static_cast<size_t>(layout.smem_bytes),
                     .cluster = layout.shape.splits,
                     .early = true},
                    stream, src, filter, out, static_cast<const float*>(buffers.bias), fused, layout.shape);
    });
  };
  StagedEpilogue<false> plain = {};
  if constexpr (!kDgrad && Config::kStats) {
    if (gather.stats) {
      plain.partials = column_partials<Config>(buffers, layout.blocks, layout.shape.column_tiles);
      return with_column_merge<Config>(bound.template operator()<CountedTiles<Config>>(plain), plain.partials,
                                       gather, buffers);
    }
  }
  if constexpr (!kDgrad && kPointwiseFuses<Config>) {
    if (gather.fused) {
      const void* seen = buffers.residual ? buffers.residual : buffers.out;  // a map needs an address
      return bound(
          StagedEpilogue<true>{.residual = pointwise_out_map<Config>(layout.shape, gather.shape.rows, seen),
                               .of = wgmma_epilogue(gather, buffers)});
    }
  }
  if (kDgrad && gather.act != ActKind::kNone) {
    plain = {.x = pointwise_out_map<Config>(layout.shape, gather.shape.rows, buffers.gate),
             .gated = true,
             .gate = conv2d_gate(gather.act)};
  }
  return bound(plain);
}

template <class Config, PointwiseFilter kFilter, bool kDgrad>
WgmmaCandidate pointwise_candidate() {
  std::string name = std::to_string(Config::kBN) + "x" + std::to_string(Config::kBK);
  if (kFilter == PointwiseFilter::kStreamed) name += "_stream";
  if (kFilter == PointwiseFilter::kSplit) name += "_split2";
  if (Config::kBlocks > 1) name += "_b2";
  return {name, Config::kBlocks == 1, pointwise_cost<Config, kFilter, kDgrad>,
          [] {
            const auto allow = [](auto* kernel) {
              check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              Config::kSmemBytes),
                         "conv2d_pointwise: shared memory");
            };
            allow(conv2d_pointwise_kernel<Config, kDgrad, false>);
            if constexpr (!kDgrad && kPointwiseFuses<Config>)
              allow(conv2d_pointwise_kernel<Config, kDgrad, true>);
            if constexpr (!kDgrad && Config::kStats)
              allow(conv2d_pointwise_kernel<CountedTiles<Config>, false, false>);
          },
          pointwise_bind<Config, kFilter, kDgrad>};
}

// Few channels are one slice and a small filter, which always stays.
template <bool kDgrad, int kBN>
void add_pointwise_candidates(std::vector<WgmmaCandidate>* all) {
  using Wide = PointwiseConfig<kBN, 64>;
  all->push_back(pointwise_candidate<PointwiseConfig<kBN, 32>, PointwiseFilter::kResident, kDgrad>());
  all->push_back(pointwise_candidate<Wide, PointwiseFilter::kResident, kDgrad>());
  all->push_back(pointwise_candidate<Wide, PointwiseFilter::kStreamed, kDgrad>());
  all->push_back(pointwise_candidate<Wide, PointwiseFilter::kSplit, kDgrad>());
}

template <bool kDgrad>
const std::vector<WgmmaCandidate>& pointwise_candidates() {
  static const std::vector<WgmmaCandidate> all = [] {
    std::vector<WgmmaCandidate> list;
    add_pointwise_candidates<kDgrad, 32>(&list);
    add_pointwise_candidates<kDgrad, 64>(&list);
    add_pointwise_candidates<kDgrad, 96>(&list);
    add_pointwise_candidates<kDgrad, 128>(&list);
    add_pointwise_candidates<kDgrad, 160>(&list);
    add_pointwise_candidates<kDgrad, 192>(&list);
    const auto two_blocks = [&]<class Config>(Config) {
      list.push_back(pointwise_candidate<Config, PointwiseFilter::kResident, kDgrad>());
    };
    two_blocks(PointwiseConfig<64, 32, 2>());
    two_blocks(PointwiseConfig<96, 32, 2>());
    two_blocks(PointwiseConfig<128, 32, 2>());
    two_blocks(PointwiseConfig<32, 64, 2>());
    two_blocks(PointwiseConfig<64, 64, 2>());
    two_blocks(PointwiseConfig<128, 64, 2>());
    return list;
  }();
  return all;
}

// Those worth a trial: the best few of the cost model.
template <bool kDgrad>
std::vector<std::string> pointwise_configs(const WgmmaGather& gather) {
  std::vector<std::string> names = wgmma_configs(pointwise_candidates<kDgrad>(), gather);
  if (names.size() > 8) names.resize(8);
  return names;
}

// Beyond the rules of the gathered product.
inline Support pointwise_supports(const Conv2dProblem& p) {
  if (p.r != 1 || p.s != 1) return Support::no("the filter must be 1x1");
  return Support::require(p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0,
                          "stride must be 1, padding 0");
}

// Whether it is thought to beat the gathered product: where bytes cost more than products, and in short
// launches, which it starts sooner.
template <bool kDgrad>
bool pointwise_preferred(const WgmmaGather& gather) {
  return choose_wgmma(pointwise_candidates<kDgrad>(), gather, "").cost(gather) <
         with_moments(gather, gathered_launch_clocks(gather, wgmma_least_cost(gather)));
}

}  // namespace kiln
