// Host side of the sweep over padded maps: where it applies, its maps, rings, tile shapes and their cost.
#pragma once

#include <limits>

#include "kernels/conv2d/conv2d_wgmma_plan.cuh"
#include "kernels/conv2d/conv2d_wgmma_sweep.cuh"

namespace kiln {

struct SweepLayout {
  bool fits = false;
  SweepShape shape = {};
};

// Divides shared memory among the rings: the whole filter where two copies of the source fit beside it, else
// up to eight of its tiles. Warpgroups that work on tiles of their own cannot share a ring of the filter.
template <class Config>
bool sweep_rings(SweepShape& shape) {
  const int steps = shape.g.steps, room = Config::kRingBytes - 2 * shape.a_stage_bytes;
  shape.resident = steps <= Config::kMaxBStages && steps * Config::kBStageBytes <= room;
  if (!shape.resident && Config::kTeam == 1) return false;
  shape.b_stages = shape.resident ? steps : std::min(8, room / Config::kBStageBytes);
  if (shape.b_stages < std::min(3, steps)) return false;
  shape.a_stages =
      std::min(Config::kMaxAStages,
               (Config::kRingBytes - shape.b_stages * Config::kBStageBytes) / shape.a_stage_bytes);
  return true;
}

// Rows of the sweep: the pixels of the padded maps.
inline long long sweep_rows(const WgmmaGather& gather) {
  const Im2colMap& src = gather.src;
  return 1LL * src.n * (src.h - gather.shape.origin_h) * (src.w - gather.shape.origin_w);
}

// kCopies: the source is copied once for each filter column, and taps are whole map rows apart; those must
// then be whole swizzle patterns.
template <class Config, bool kCopies>
SweepLayout sweep_layout(const WgmmaGather& gather) {
  SweepLayout layout;
  SweepShape& shape = layout.shape;
  const WgmmaShape& g = shape.g = gather.shape;
  const int above = -g.origin_h, left = -g.origin_w;  // padding
  const int below = g.out_h + g.r - 1 - above - gather.src.h, right = g.out_w + g.s - 1 - left - gather.src.w;
  if (above < 0 || left < 0 || below > above || right > left) return layout;
  shape.pitch = gather.src.w + left;
  const long long rows = sweep_rows(gather);
  const long long pixels = Config::kBM + 1LL * (g.r - 1) * shape.pitch + (kCopies ? 0 : g.s - 1);
  if (rows > (1LL << 30) || pixels * Config::kPixelBytes > Config::kRingBytes) return layout;
  if (kCopies && (shape.pitch % 8 || g.s == 1)) return layout;
  shape.image_pixels = (gather.src.h + above) * shape.pitch;
  shape.g.rows = static_cast<int>(rows);
  shape.g = shape_for<Config>(shape.g);
  shape.loads = static_cast<int>(ceil_div(pixels, 256));
  shape.load_pixels = static_cast<int>(ceil_div(pixels, 8 * shape.loads)) * 8;
  shape.a_stage_bytes = ceil_div(shape.loads * shape.load_pixels * Config::kPixelBytes, 1024) * 1024;
  shape.copies = kCopies ? g.s : 1;
  layout.fits = sweep_rings<Config>(shape);
  return layout;
}

// Blocks of one column tile.
inline int sweep_blocks(const WgmmaShape& g, int multiprocessors) {
  return std::min(g.row_tiles, std::max(1, multiprocessors / g.column_tiles));
}

// In the clocks of wgmma_launch_cost: tiles one after the other, each as long as its products, its reads of
// L2 or the copy engine's walk take (about 5 clocks a pixel), and its stores, which one-warpgroup tiles hide.
template <class Config, bool kCopies>
double sweep_cost(const WgmmaGather& gather) {
  const SweepLayout layout = sweep_layout<Config, kCopies>(gather);
  if (!layout.fits) return std::numeric_limits<double>::infinity();
  const SweepShape& shape = layout.shape;
  const WgmmaShape& g = shape.g;
  if (gather.stats && !wgmma_takes_stats(g, gather.multiprocessors)) {
    return std::numeric_limits<double>::infinity();
  }
  constexpr double kProduct = Config::kBN >= 128 ? 80 : Config::kBN >= 64 ? 42 : 26;  // m64, 16 channels
  const double products = Config::kBM / 64 * ceil_div(g.src_c, 16) * g.r * g.s * kProduct;
  const double copies = 1.0 * shape.copies * ceil_div(g.src_c, Config::kBK);
  const double filter = 1.0 * g.steps * Config::kBStageBytes;
  const double walk = 5.0 * copies * shape.loads * shape.load_pixels;
  const double read = (copies * shape.a_stage_bytes + (shape.resident ? 0 : filter)) / 38;
  const double stores = 600 + 2.0 * Config::kBM * Config::kBN / 38;
  const double tiles = ceil_div(g.row_tiles, sweep_blocks(g, gather.multiprocessors));
  const double work = std::max({products, walk, read});
  const double once = shape.resident ? filter / 38 : 0;
  return Config::kTeam == 1 ? once + tiles * std::max(work, stores) + stores : once + tiles * (work + stores);
}

template <class Config, bool kDgrad, bool kCopies>
Bound sweep_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  const SweepLayout layout = sweep_layout<Config, kCopies>(gather);
  if (!layout.fits) fail_usage("conv2d wgmma_halo: this tile does not fit the map");
  SweepShape shape = layout.shape;
  shape.g = with_gate(shape.g, gather, buffers, kDgrad);
  shape.epilogue = wgmma_epilogue(gather, buffers);
  Im2colMap im2col = gather.src;  // walks each padded map from its first zero to the last pixel
  im2col.base = buffers.src;
  im2col.lower_w = shape.g.origin_w;
  im2col.lower_h = shape.g.origin_h;
  im2col.upper_w = im2col.upper_h = 0;
  im2col.channels = Config::kBK;
  im2col.pixels = shape.load_pixels;
  const int slots = sweep_blocks(shape.g, gather.multiprocessors);
  const unsigned blocks = shape.g.column_tiles * slots;
  shape.epilogue.stats = wgmma_stats(gather, buffers, slots);
  auto kernel = conv2d_sweep_wgmma_kernel<Config, kDgrad, false>;
  if (!kDgrad && gather.fused) kernel = conv2d_sweep_wgmma_kernel<Config, kDgrad, !kDgrad>;
  return wgmma_bound<Config>(kernel, make_im2col_map(im2col),
                             wgmma_filter_map<Config, kDgrad>(gather, buffers.filter), buffers, shape,
                             blocks);
}

// Named "256x64x64_solo" or "_pair" after kTeam; "_copies": a copy of the source for each filter column.
template <class Config, bool kDgrad, bool kCopies>
WgmmaCandidate sweep_candidate(bool automatic) {
  std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                     std::to_string(Config::kBK) + (Config::kTeam == 1 ? "_solo" : "_pair");
  if (kCopies) name += "_copies";
  return {name, automatic && !kCopies, sweep_cost<Config, kCopies>,
          [] {
            for (const auto kernel : {conv2d_sweep_wgmma_kernel<Config, kDgrad, false>,
                                      conv2d_sweep_wgmma_kernel<Config, kDgrad, !kDgrad>}) {
              check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              Config::kSmemBytes),
                         "conv2d_sweep_wgmma: shared memory");
            }
          },
          sweep_bind<Config, kDgrad, kCopies>};
}

template <class... Configs>
struct SweepList {
  template <bool kDgrad>
  static void append(std::vector<WgmmaCandidate>& to, bool automatic) {
    (to.push_back(sweep_candidate<Configs, kDgrad, false>(automatic)), ...);
    (to.push_back(sweep_candidate<Configs, kDgrad, true>(automatic)), ...);
  }
  static double cost(const WgmmaGather& gather) {  // the least
    return std::min({sweep_cost<Configs, false>(gather)...});
  }
};

using SweepTiles =
    SweepList<SweepConfig<256, 64, 64, 1>, SweepConfig<128, 64, 64, 1>, SweepConfig<128, 128, 64, 1>,
              SweepConfig<256, 32, 64, 1>, SweepConfig<256, 64, 32, 1>, SweepConfig<256, 32, 32, 1>,
              SweepConfig<256, 128, 64, 2>, SweepConfig<256, 64, 64, 2>>;

}  // namespace kiln
