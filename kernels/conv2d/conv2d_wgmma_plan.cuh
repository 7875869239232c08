// Host side of the wgmma gathered product: tensor maps, the compiled tile shapes, the choice among them,
// launch.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grid.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_wgmma.cuh"

namespace kiln {

// What both passes ask for beyond their own rules.
inline Support wgmma_gather_supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (p.r > 127 || p.s > 127) return Support::no("filter sides must be at most 127 (im2col corners)");
  return Support::require(p.stride_h <= 8 && p.stride_w <= 8, "strides must be at most 8 (im2col steps)");
}

// A gathered product without its buffers: the source's map (without its base and load size) and the shape.
struct WgmmaGather {
  Im2colMap src;
  WgmmaShape shape;  // row_tiles, column_tiles and steps belong to a tile shape
  int filter_c, filter_k;
  int multiprocessors;
};

struct WgmmaBuffers {
  const void* src;
  const void* filter;
  const void* bias;
  void* out;
};

template <class Config>
WgmmaShape shape_for(WgmmaShape g) {
  g.row_tiles = ceil_div(g.rows, Config::kBM);
  g.column_tiles = ceil_div(g.columns, Config::kBN);
  g.steps = g.r * g.s * ceil_div(g.src_c, Config::kBK);
  return g;
}

// Blocks that stay: one a multiprocessor, whole clusters, no more than there are tiles.
template <class Config>
unsigned wgmma_grid(const WgmmaShape& g, int multiprocessors) {
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  return Config::kCluster *
         static_cast<unsigned>(std::min<long long>(items, std::max(1, multiprocessors / Config::kCluster)));
}

template <class Config, bool kDgrad>
void wgmma_prepare() {
  check_cuda(cudaFuncSetAttribute(conv2d_gather_wgmma_kernel<Config, kDgrad>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_gather_wgmma: shared memory");
}

template <class Config, bool kDgrad>
Bound wgmma_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  Im2colMap im2col = gather.src;
  im2col.base = buffers.src;
  im2col.channels = Config::kBK;
  im2col.pixels = Config::kBM;
  const uint64_t c = gather.filter_c, taps = gather.shape.r * gather.shape.s;
  constexpr uint32_t kInner = kDgrad ? Config::kColumnSpan : Config::kBK;
  constexpr uint32_t kOuter = kDgrad ? Config::kBK : Config::kBN / Config::kCluster;
  const TiledMap tiled = {.base = buffers.filter,
                          .sizes = {c, taps, static_cast<uint64_t>(gather.filter_k)},
                          .strides = {c, taps * c},
                          .box = {kInner, 1, kOuter}};
  const CUtensorMap src = make_im2col_map(im2col), filter = make_tiled_map(tiled);
  const WgmmaShape g = shape_for<Config>(gather.shape);
  const unsigned blocks = wgmma_grid<Config>(g, gather.multiprocessors);
  return Bound([=](Stream stream) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = Config::kCluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3(blocks);
    launch.blockDim = dim3(Config::kThreads);
    launch.dynamicSmemBytes = Config::kSmemBytes;
    launch.stream = cuda_stream(stream);
    launch.attrs = &cluster;
    launch.numAttrs = Config::kCluster > 1 ? 1 : 0;
    check_cuda(
        cudaLaunchKernelEx(&launch, conv2d_gather_wgmma_kernel<Config, kDgrad>, src, filter,
                           static_cast<const float*>(buffers.bias), static_cast<bf16*>(buffers.out), g),
        "conv2d_gather_wgmma_kernel");
    check_launch("conv2d_gather_wgmma_kernel");
  });
}

// Clocks that a launch is thought to take: waves of tiles, each as long as its products or its reads of L2
// take, and its stores. Only ratios matter; the constants are the H100's (4096 FLOP, about 38 bytes of L2 a
// clock and multiprocessor; narrow products run below the full rate).
template <class Config>
double wgmma_cost(const WgmmaGather& gather) {
  const WgmmaShape g = shape_for<Config>(gather.shape);
  constexpr double kRate = Config::kBN >= 256   ? 1.0
                           : Config::kBN >= 128 ? 0.92
                           : Config::kBN >= 64  ? 0.85
                                                : 0.6;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  constexpr double kReads = 2.0 * (Config::kBM + 1.0 * Config::kBN / Config::kCluster) * Config::kBK / 38;
  constexpr double kStores = 600 + 2.0 * Config::kBM * Config::kBN / 38;
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  const long long clusters = wgmma_grid<Config>(g, gather.multiprocessors) / Config::kCluster;
  return static_cast<double>(ceil_div(items, clusters)) * (g.steps * std::max(kProducts, kReads) + kStores);
}

// A compiled tile shape: what follows "wgmma:" in a choice.
struct WgmmaCandidate {
  std::string name;  // "128x256x64_s4", with clusters "128x256x64_s4_c2"
  bool automatic;    // taken unasked
  double (*cost)(const WgmmaGather&);
  void (*prepare)();
  Bound (*bind)(const WgmmaGather&, const WgmmaBuffers&);
};

template <class Config, bool kDgrad>
WgmmaCandidate wgmma_candidate() {
  std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                     std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages);
  if (Config::kCluster > 1) name += "_c" + std::to_string(Config::kCluster);
  return {name, Config::kCluster == 1, wgmma_cost<Config>, wgmma_prepare<Config, kDgrad>,
          wgmma_bind<Config, kDgrad>};
}

template <bool kDgrad>
const std::vector<WgmmaCandidate>& wgmma_candidates() {
  static const std::vector<WgmmaCandidate> all = {wgmma_candidate<WgmmaConfig<128, 256, 64, 4>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 128, 64, 4>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<128, 128, 64, 6>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 64, 64, 5>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 32, 64, 5>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 128, 32, 8>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 64, 32, 8>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 32, 32, 8>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<128, 256, 64, 4, 2>, kDgrad>(),
                                                  wgmma_candidate<WgmmaConfig<256, 128, 64, 4, 2>, kDgrad>()};
  return all;
}

// The named tile shape, or for an empty name the automatic one of the least cost.
template <bool kDgrad>
const WgmmaCandidate& choose_wgmma(const WgmmaGather& gather, std::string_view name) {
  const WgmmaCandidate* best = nullptr;
  std::string known;
  for (const WgmmaCandidate& candidate : wgmma_candidates<kDgrad>()) {
    if (candidate.name == name) return candidate;
    known += (known.empty() ? "" : ", ") + candidate.name;
    if (candidate.automatic && (!best || candidate.cost(gather) < best->cost(gather))) best = &candidate;
  }
  if (!name.empty()) fail_usage("conv2d wgmma: unknown tile '" + std::string(name) + "'; known: " + known);
  return *best;
}

// The plan of a pass: `buffers(args)` names the pass's tensors.
template <class Args, bool kDgrad>
Plan<Args> wgmma_gather_plan(const WgmmaGather& gather, std::string_view config,
                             WgmmaBuffers (*buffers)(const Args&)) {
  const WgmmaCandidate& tile = choose_wgmma<kDgrad>(gather, config);
  tile.prepare();
  return Plan<Args>(0, [gather, bind = tile.bind, buffers](const Args& args, void*) {
    require_aligned_args(&args, sizeof args);
    return bind(gather, buffers(args));
  });
}

}  // namespace kiln
