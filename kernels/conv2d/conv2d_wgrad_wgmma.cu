// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c], dbias[k] = sum
// dy[n,p,q,k], on Hopper's tensor cores.
//
// Implicit GEMM whose sum runs over output pixels, see conv2d_wgrad_wgmma.cuh: TMA cuts the tiles and wgmma
// reads both across their rows. A tile's sum is cut into parts to fill the chip; each part writes fp32 sums
// to the workspace and a second kernel adds them in fixed order; dbias likewise. One block a multiprocessor,
// 177 to 225 KiB of shared memory. Config "128x256x64_s4_images": output channels x columns x pixels of a
// stage, stages; walk; "_c2": two blocks share a part. Needs compute capability 9.0, bf16, channels in
// multiples of 8. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgrad_wgmma.cuh"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (p.r > 127 || p.s > 127) return Support::no("filter sides must be at most 127 (im2col corners)");
  return Support::require(p.stride_h <= 8 && p.stride_w <= 8, "strides must be at most 8 (im2col steps)");
}

constexpr int kShortestChain = 5120;  // see longest_chain

enum class Walk { kPixels, kImages };

struct Mode {
  Walk walk;
  int pair;  // blocks of a cluster
};

// A 1x1 filter over whole maps is a plain product: every pixel counts as an image.
bool is_plain(const Conv2dProblem& p) {
  return p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0;
}

Conv2dProblem walked(Conv2dProblem p, Walk walk) {
  if (walk == Walk::kImages && is_plain(p)) p.n *= p.h * p.w, p.h = p.w = 1;
  return p;
}

// A tile shape and a walk applied to a problem; `problem` is the walked one.
template <class Config>
struct Layout {
  WgradWgmmaShape shape;
  int blocks = 0, parts = 0;  // of the grid; most of a tile
  double cost = 0;
  double step = 0, read_bytes = 0;  // clocks of a step; of x and dy

  Layout(const Conv2dProblem& p, Mode mode, const Device& device)
      : shape{.by_image = mode.walk == Walk::kImages,
              .blocks = ceil_div(mode.walk == Walk::kImages ? p.n : p.n * p.p() * p.q(), Config::kBK),
              .h = p.h,
              .w = p.w,
              .p = p.p(),
              .q = p.q(),
              .stride_h = p.stride_h,
              .stride_w = p.stride_w,
              .pad_h = p.pad_h,
              .pad_w = p.pad_w,
              .k = p.k,
              .c = p.c,
              .s = p.s,
              .slices = ceil_div(p.c, Config::kSpan),
              .column_boxes = p.r * p.s * ceil_div(p.c, Config::kSpan),
              .columns = p.r * p.s * p.c,
              .tile_boxes = Config::kBBoxes,
              .row_tiles = ceil_div(p.k, Config::kBM),
              .column_tiles = ceil_div(p.r * p.s * ceil_div(p.c, Config::kSpan), Config::kBBoxes),
              .part_steps = std::numeric_limits<int>::max(),
              .common_parts = 1,
              .pair = mode.pair} {
    const double x_pixels = 1.0 * p.n * (p.r == 1 && p.s == 1 ? p.p() * p.q() : p.h * p.w);
    read_bytes = 2 * (x_pixels * p.c + 1.0 * p.n * p.p() * p.q() * p.k);
    step = step_clocks();
    std::vector<int> lengths;  // of the column tiles
    for (int box = 0; box < shape.column_boxes; box += Config::kBBoxes) {
      lengths.push_back(wgrad_window(shape, box).steps);
    }
    std::vector<int> distinct = lengths;
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const int longest = std::max(distinct.back(), 1);
    const int chain = longest_chain(p.n * p.p() * p.q(), kShortestChain) / Config::kBK * shape.pair;
    const long long most =
        std::clamp((32LL << 20) / (1LL * shape.k * shape.columns), 1LL, 4LL * device.multiprocessors);
    choose(lengths, ceil_div(longest, static_cast<int>(std::min<long long>(most, longest))), device);
    for (const int length : distinct) {
      for (int count = 1; count <= most && length >= 8 * count * shape.pair; ++count) {
        const int steps = ceil_div(length, count);
        if (steps <= chain && ceil_div(longest, steps) <= most) choose(lengths, steps, device);
      }
    }
  }

 private:
  // Clocks of a step at a multiprocessor (H100): its products, its reads of L2 and its copies, which overlap
  // but not wholly. Of a step's boxes neighbouring blocks share what they both read, up to six of them. A
  // copy makes a row of a box in about two clocks, of pixels that are no whole lines more slowly. Walking by
  // image reads rows that lie far apart, and tiles whose windows differ share little: the smaller the map,
  // the less.
  double step_clocks() const {
    constexpr double kFast = Config::kMTiles > 1 ? 0.8 : 0.87;
    constexpr double kRate = Config::kBK < 64 ? 0.7 : Config::kN >= 96 ? kFast : 0.37;
    constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
    const double a_boxes = std::min(1.0 * Config::kABoxes, 1.0 * ceil_div(shape.k, 64) / shape.row_tiles);
    const double b_boxes = 1.0 * shape.column_boxes / shape.column_tiles;
    const double rows = std::min(shape.row_tiles, 6),
                 columns = std::clamp(6 / rows, 1.0, 1.0 * shape.column_tiles);
    const double bytes = a_boxes * Config::kABoxBytes / columns + b_boxes * Config::kBBoxBytes / rows;
    const double reads = bytes / (shape.by_image ? 28.5 : 38);
    const double copies = 2.2 * Config::kBK * (a_boxes + b_boxes) * (shape.c % 32 ? 2.3 : 1);
    const double clocks = std::pow(std::pow(kProducts, 4) + std::pow(reads, 4) + std::pow(copies, 4), 0.25);
    return is_strewn() ? clocks * (1 + 5.0 / (shape.p * shape.q)) : clocks;
  }

  bool is_strewn() const { return shape.by_image && shape.h * shape.w > 1; }

  // Takes parts of at most `steps` if nothing so far is faster: waves of blocks, or x and dy from memory,
  // then the sum over parts.
  void choose(const std::vector<int>& lengths, int steps, const Device& device) {
    constexpr double kEnds = 4000 + 4.0 * Config::kBM * Config::kBN / 160;
    const int places = device.multiprocessors;
    const double exchange = shape.pair > 1 ? 1000 + 2.0 * Config::kBM * Config::kBN / 20 : 0;
    long long count = 0, summed = 0;
    int longest_part = 0, most_parts = 1, least_parts = std::numeric_limits<int>::max();
    for (const int length : lengths) {
      const int tile_parts = std::max(1, ceil_div(length, steps));
      count += 1LL * tile_parts * shape.row_tiles * shape.pair;
      summed += tile_parts > 1 ? tile_parts : 0;
      longest_part = std::max(longest_part, ceil_div(length, tile_parts * shape.pair));
      most_parts = std::max(most_parts, tile_parts);
      least_parts = std::min(least_parts, tile_parts);
    }
    const double share = 1.0 * shape.k * shape.columns / static_cast<double>(lengths.size());
    const double sum = summed ? 2000 + 4.0 * static_cast<double>(summed) * share / (6.2 * places) : 0;
    const double waves = static_cast<double>(ceil_div<long long>(count, places));
    const double work = waves * (longest_part * step + kEnds + exchange);
    const double memory =
        read_bytes / ((is_strewn() ? 10.5 : 11.5) * std::min<long long>(count, places)) + kEnds;
    const double clocks = std::max(work, memory) + 0.05 * work + sum;
    if (blocks > 0 && clocks >= cost) return;
    shape.part_steps = steps;
    shape.common_parts = least_parts;
    blocks = static_cast<int>(count);
    parts = most_parts;
    cost = clocks;
  }
};

template <class Config>
double cost_of(const Conv2dProblem& p, Mode mode, const Device& device) {
  return Layout<Config>(walked(p, mode.walk), mode, device).cost;
}

Im2colMap im2col_map(const Conv2dProblem& p, const void* x, int channels, int pixels) {
  return {.base = x,
          .c = p.c,
          .w = p.w,
          .h = p.h,
          .n = p.n,
          .channel_stride = p.x_channels(),
          .lower_w = -p.pad_w,
          .lower_h = -p.pad_h,
          .upper_w = p.pad_w - (p.s - 1),
          .upper_h = p.pad_h - (p.r - 1),
          .stride_w = p.stride_w,
          .stride_h = p.stride_h,
          .channels = channels,
          .pixels = pixels};
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

CUtensorMap dy_map(const Conv2dProblem& p, Walk walk, const void* dy, uint32_t pixels) {
  if (walk == Walk::kImages) return make_tiled_map(image_map(dy, p.n, p.p(), p.q(), p.k, p.k, 64, pixels));
  const uint64_t k = p.k, rows = static_cast<uint64_t>(p.n) * p.p() * p.q();
  return make_tiled_map(TiledMap<4>{
      .base = dy, .sizes = {k, rows, 1, 1}, .strides = {k, k * rows, k * rows}, .box = {64, pixels, 1, 1}});
}

template <class Config>
CUtensorMap x_map(const Conv2dProblem& p, Walk walk, const void* x) {
  if (walk == Walk::kPixels) return make_im2col_map(im2col_map(p, x, Config::kSpan, Config::kBK));
  return make_tiled_map(image_map(x, p.n, p.h, p.w, p.c, p.x_channels(), Config::kSpan, Config::kBK));
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& problem, Mode mode, const Device& device) {
  const Walk walk = mode.walk;
  const Conv2dProblem p = walked(problem, walk);
  const Layout<Config> layout(p, mode, device);
  const WgradWgmmaShape g = layout.shape;
  const int blocks = layout.blocks, parts = layout.parts, outputs = g.k * g.columns;
  const int pixels = p.n * p.p() * p.q();
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
          cudaLaunchAttribute cluster = {};
          cluster.id = cudaLaunchAttributeClusterDimension;
          cluster.val.clusterDim.x = g.pair;
          cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
          cudaLaunchConfig_t launch = {};
          launch.gridDim = dim3(blocks);
          launch.blockDim = dim3(Config::kThreads);
          launch.dynamicSmemBytes = Config::kSmemBytes;
          launch.stream = cuda_stream(stream);
          launch.attrs = &cluster;
          launch.numAttrs = g.pair > 1 ? 1 : 0;
          check_cuda(cudaLaunchKernelEx(&launch, kernel, dy, x, partial, dw, g), "conv2d_wgrad_wgmma_kernel");
          if (parts > 1) sum_ranges(partial, parts, WgradRanges{g, Config::kSpan}, outputs, dw, stream);
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
  Mode mode;
  double (*cost)(const Conv2dProblem&, Mode, const Device&);
  Plan<Conv2dWgrad::Args> (*plan)(const Conv2dProblem&, Mode, const Device&);
};

template <class Config>
void add_candidates(std::vector<Candidate>& list) {
  const std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                           std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages);
  for (int pair = 1; pair <= 2; ++pair) {
    const std::string end = pair > 1 ? "_c2" : "";
    list.push_back({name + "_pixels" + end, {Walk::kPixels, pair}, cost_of<Config>, plan_for<Config>});
    list.push_back({name + "_images" + end, {Walk::kImages, pair}, cost_of<Config>, plan_for<Config>});
  }
}

std::vector<Candidate> all_candidates() {
  std::vector<Candidate> list;
  add_candidates<WgradWgmmaConfig<2, 1, 1, 256, 64, 64, 4>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 1, 192, 64, 64, 5>>(list);
  add_candidates<WgradWgmmaConfig<2, 1, 2, 128, 64, 64, 4>>(list);
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

const Candidate& best_candidate(const Conv2dProblem& p, const Device& device) {
  const Candidate* best = nullptr;
  double best_cost = 0;
  for (const Candidate& tile : candidates()) {
    if (tile.mode.pair > 1) continue;  // only on demand
    const double cost = tile.cost(p, tile.mode, device);
    if (!best || cost < best_cost) best = &tile, best_cost = cost;
  }
  return *best;
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_wgmma = {
    .name = "wgmma",
    .supports = supports,
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
          return chosen->plan(p, chosen->mode, device);
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          const Candidate& best = best_candidate(p, device);
          const double limit = 2.5 * best.cost(p, best.mode, device);
          std::vector<std::string> names;
          for (const Candidate& tile : candidates()) {
            if (tile.cost(p, tile.mode, device) <= limit) names.push_back(tile.name);
          }
          return names;
        }};

}  // namespace kiln
