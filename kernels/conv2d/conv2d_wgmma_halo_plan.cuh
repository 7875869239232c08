// Host side of the wgmma products that share copies of the source among filter taps: the halo of whole map
// rows, where it fits, else the sweep over padded maps.
#pragma once

#include <limits>

#include "kernels/conv2d/conv2d_column_merge.cuh"
#include "kernels/conv2d/conv2d_wgmma_halo.cuh"
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"
#include "kernels/conv2d/conv2d_wgmma_sweep_plan.cuh"

namespace kiln {

template <class Config>
struct HaloLayout {
  bool fits = false;
  HaloShape shape = {};
};

// Whole map rows of one image, or whole images, must make a tile; every 64 of its pixels lie in one image.
template <class Config>
HaloLayout<Config> halo_layout(const WgmmaShape& shape) {
  HaloLayout<Config> layout;
  const WgmmaShape g = shape_for<Config>(shape);
  if (g.out_w % 8 || Config::kBM % g.out_w) return layout;
  const int tile_h = std::min(Config::kBM / g.out_w, g.out_h);
  const int image_pixels = tile_h * g.out_w;
  if (g.out_h % tile_h || Config::kBM % image_pixels || image_pixels % 64) return layout;
  const int tile_images = Config::kBM / image_pixels;
  const int halo_pixels = tile_images * (tile_h + g.r - 1) * g.out_w;
  layout.fits = halo_pixels <= Config::kHaloPixels && tile_h + g.r - 1 <= 256 &&
                (!Config::kPool || conv2d_pools_by_64(g.out_h, g.out_w));
  layout.shape = {.g = g,
                  .tile_h = tile_h,
                  .tile_images = tile_images,
                  .halo_bytes = halo_pixels * Config::kBK * 2,
                  .resident = g.column_tiles == 1 && g.steps <= Config::kBStages};
  return layout;
}

template <class Config>
double halo_cost(const WgmmaGather& gather) {
  const HaloLayout<Config> layout = halo_layout<Config>(gather.shape);
  if (!layout.fits) return std::numeric_limits<double>::infinity();
  const WgmmaShape& g = layout.shape.g;
  if (gather.stats && !(gather.sums && Config::kStats && wgmma_takes_stats(g, gather.multiprocessors))) {
    return std::numeric_limits<double>::infinity();
  }
  const double halos = 1.0 * g.steps / g.r * layout.shape.halo_bytes;
  const double filter = layout.shape.resident ? 0 : 1.0 * g.steps * Config::kBStageBytes;
  return wgmma_launch_cost<Config>(g, halos + filter, gather.multiprocessors);
}

template <class Config, bool kDgrad>
Bound halo_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  const HaloLayout<Config> layout = halo_layout<Config>(gather.shape);
  if (!layout.fits) fail_usage("conv2d wgmma_halo: this tile does not fit the map");
  HaloShape shape = layout.shape;
  shape.g = with_gate(shape.g, gather, buffers, kDgrad);
  shape.epilogue = wgmma_epilogue(gather, buffers);
  const unsigned blocks = wgmma_launch_grid<Config>(gather, shape.g);
  const Im2colMap& src = gather.src;
  const uint64_t pixel = src.channel_stride, w = src.w, h = src.h;
  const CUtensorMap src_map =
      make_tiled_map(TiledMap<4>{.base = buffers.src,
                                 .sizes = {static_cast<uint64_t>(src.c), w, h, static_cast<uint64_t>(src.n)},
                                 .strides = {pixel, pixel * w, pixel * w * h},
                                 .box = {Config::kBK, static_cast<uint32_t>(shape.g.out_w),
                                         static_cast<uint32_t>(shape.tile_h + shape.g.r - 1),
                                         static_cast<uint32_t>(shape.tile_images)}});
  const CUtensorMap filter_map = wgmma_filter_map<Config, kDgrad>(gather, buffers.filter);
  shape.arg = static_cast<uint8_t*>(buffers.arg);
  auto kernel = conv2d_halo_wgmma_kernel<Config, kDgrad, Config::kPool>;
  if constexpr (!kDgrad && Config::kStats) {
    if (gather.stats) {
      shape.partials = column_partials<Config>(buffers, blocks, shape.g.column_tiles);
      kernel = conv2d_halo_wgmma_kernel<CountedTiles<Config>, false, false>;
      return with_column_merge<Config>(
          wgmma_bound<Config>(kernel, src_map, filter_map, buffers, shape, blocks), shape.partials, gather,
          buffers);
    }
  }
  if (!kDgrad && gather.fused) kernel = conv2d_halo_wgmma_kernel<Config, kDgrad, !kDgrad>;
  return wgmma_bound<Config>(kernel, src_map, filter_map, buffers, shape, blocks);
}

template <class Config, bool kDgrad>
WgmmaCandidate halo_candidate() {
  return {std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
              std::to_string(Config::kBK) + "_s" + std::to_string(Config::kAStages),
          true, halo_cost<Config>,
          [] {
            const auto allow = [](auto* kernel) {
              check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              Config::kSmemBytes),
                         "conv2d_halo_wgmma: shared memory");
            };
            allow(conv2d_halo_wgmma_kernel<Config, kDgrad, Config::kPool>);
            allow(conv2d_halo_wgmma_kernel<Config, kDgrad, !kDgrad>);
            if constexpr (!kDgrad && Config::kStats) {
              allow(conv2d_halo_wgmma_kernel<CountedTiles<Config>, false, false>);
            }
          },
          halo_bind<Config, kDgrad>};
}

using HaloNarrow =
    HaloConfig<256, 64, 3, 9, 320>;  // nine filter tiles: a 3x3 filter of 64 x 64 channels stays
using HaloTall = HaloConfig<256, 128, 3, 5, 320>;
using HaloWide = HaloConfig<128, 256, 3, 4, 192>;

// Whether a halo of whole map rows serves the product: the summed channels fill most of their slices.
inline bool halo_serves(const WgmmaShape& g) {
  if (g.r < 2 || 4 * g.src_c < 3 * 64 * ceil_div(g.src_c, 64)) return false;
  return halo_layout<HaloNarrow>(g).fits || halo_layout<HaloWide>(g).fits;
}

inline double halo_least_cost(const WgmmaGather& gather) {
  return std::min({halo_cost<HaloNarrow>(gather), halo_cost<HaloTall>(gather), halo_cost<HaloWide>(gather)});
}

// Where the halo serves, the sweep is taken unasked only if it is thought to be a quarter faster.
inline bool sweep_instead(const WgmmaGather& gather) {
  if (!halo_serves(gather.shape)) return true;
  return 1.25 * SweepTiles::cost(gather) < halo_least_cost(gather);
}

template <bool kDgrad>
std::vector<WgmmaCandidate> halo_candidates(const WgmmaGather& gather) {
  std::vector<WgmmaCandidate> all;
  if (halo_serves(gather.shape)) {
    all = {halo_candidate<HaloNarrow, kDgrad>(), halo_candidate<HaloTall, kDgrad>(),
           halo_candidate<HaloWide, kDgrad>()};
  }
  SweepTiles::append<kDgrad>(all, sweep_instead(gather));
  return all;
}

// With max2: tiles of whole map rows alone; narrow ones for layers of few channels.
using HaloPoolSlim = HaloConfig<256, 32, 8, 9, 320, 32, true>;
using HaloPoolNarrow = HaloConfig<256, 64, 3, 9, 320, 64, true>;
using HaloPoolTall = HaloConfig<256, 128, 3, 5, 320, 64, true>;
using HaloPoolWide = HaloConfig<128, 256, 3, 4, 192, 64, true>;

inline const std::vector<WgmmaCandidate>& halo_pool_candidates() {
  static const std::vector<WgmmaCandidate> all = {
      halo_candidate<HaloPoolSlim, false>(), halo_candidate<HaloPoolNarrow, false>(),
      halo_candidate<HaloPoolTall, false>(), halo_candidate<HaloPoolWide, false>()};
  return all;
}

inline Support halo_pool_supports(const Conv2dProblem& p, const Device& device) {
  Conv2dProblem unpooled = p;
  unpooled.pool = unpooled.pool_arg = false;
  if (const Support gather = wgmma_fused_gather_supports(unpooled, device); !gather) return gather;
  if (p.residual) return Support::no("with max2 it takes no res");
  if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
  const WgmmaShape& g = wgmma_fwd_gather(p, device).shape;
  return Support::require(halo_layout<HaloPoolSlim>(g).fits || halo_layout<HaloPoolNarrow>(g).fits ||
                              halo_layout<HaloPoolTall>(g).fits || halo_layout<HaloPoolWide>(g).fits,
                          "max2 needs maps of width 8, 16 or 32 whose rows make whole tiles");
}

// Worth a try: those thought to take at most twice the time of the best.
template <bool kDgrad>
std::vector<std::string> halo_configs(const WgmmaGather& gather) {
  std::vector<WgmmaCandidate> all = halo_candidates<kDgrad>(gather);
  double best = std::numeric_limits<double>::infinity();
  for (const WgmmaCandidate& candidate : all) best = std::min(best, candidate.cost(gather));
  std::erase_if(all, [&](const WgmmaCandidate& candidate) { return candidate.cost(gather) > 2 * best; });
  return wgmma_configs(all, gather);
}

// Beyond the rules of the gathered product.
inline Support halo_supports(const WgmmaGather& gather) {
  const WgmmaShape& g = gather.shape;
  if (g.stride_h != 1 || g.stride_w != 1) return Support::no("stride must be 1");
  if (g.r * g.s < 2) return Support::no("a filter of one tap shares nothing");
  if (gather.stats && std::isfinite(halo_cost<HaloNarrow>(gather))) return Support::yes();
  return Support::require((halo_serves(g) && !gather.stats) || std::isfinite(SweepTiles::cost(gather)),
                          "the pixels of a tile and those that the filter adds must fit in shared memory");
}

// The sweep's cost in the measure of the gathered product's: one slice of 32 channels is two products a tap,
// too short to hide what lies between taps, and takes twice as long on an H100. Fewer channels leave the
// slice part empty, which slows the gathered product's copies as much.
inline double sweep_compared_cost(const WgmmaGather& gather) {
  return (gather.shape.src_c == 32 ? 2.04 : 1) * SweepTiles::cost(gather);
}

// Whether it is thought to beat the product that gathers its source for every tap; never where the sweep
// multiplies half as many rows again as there are pixels, nor for many output channels, of which the gathered
// product makes wider tiles.
inline bool halo_preferred(const WgmmaGather& gather) {
  const double gathered = wgmma_least_cost(gather);
  if (!sweep_instead(gather)) return halo_least_cost(gather) <= with_moments(gather, gathered);
  if (halo_serves(gather.shape)) return sweep_compared_cost(gather) <= gathered;
  if (gather.shape.columns > 192) return false;
  if (2.0 * sweep_rows(gather) > 3.0 * gather.shape.rows) return false;
  return sweep_compared_cost(gather) < gathered;
}

}  // namespace kiln
