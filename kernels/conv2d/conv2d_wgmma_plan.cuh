// Host side of the wgmma gathered product: tensor maps, the compiled tile shapes, the choice among them,
// launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grid.h"
#include "kernels/common/impl.h"
#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_epilogue.cuh"
#include "kernels/conv2d/conv2d_wgmma.cuh"

namespace kiln {

// What both passes ask for beyond their own rules.
inline Support wgmma_gather_supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (const Support plain = conv2d_takes_no_epilogue(p); !plain) return plain;
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (p.r > 127 || p.s > 127) return Support::no("filter sides must be at most 127 (im2col corners)");
  return Support::require(p.stride_h <= 8 && p.stride_w <= 8, "strides must be at most 8 (im2col steps)");
}

// The same for a product that is also compiled with an epilogue.
inline Support wgmma_fused_gather_supports(const Conv2dProblem& p, const Device& device) {
  if (const Support epilogue = conv2d_epilogue_supports(p); !epilogue) return epilogue;
  Conv2dProblem plain = p;
  plain.scale = plain.residual = false;
  plain.act = ActKind::kNone;
  return wgmma_gather_supports(plain, device);
}

inline Support wgmma_dgrad_supports(const Conv2dProblem& p, const Device& device) {
  if (p.stride_h != 1 || p.stride_w != 1) return Support::no("stride must be 1");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  return wgmma_gather_supports(p, device);
}

// A gathered product without its buffers: the source's map (without its base and load size) and the shape.
struct WgmmaGather {
  Im2colMap src;
  WgmmaShape shape;  // row_tiles, column_tiles and steps belong to a tile shape
  int filter_c, filter_k;
  int multiprocessors;
  bool fused = false;            // fwd: there is more behind the sum than a bias
  ActKind act = ActKind::kNone;  // fwd
};

inline WgmmaGather wgmma_fwd_gather(const Conv2dProblem& p, const Device& device) {
  return {.src = {.base = nullptr,
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
                  .channels = 0,
                  .pixels = 0},
          .shape = {.rows = p.n * p.p() * p.q(),
                    .out_h = p.p(),
                    .out_w = p.q(),
                    .src_c = p.c,
                    .columns = p.k,
                    .r = p.r,
                    .s = p.s,
                    .stride_h = p.stride_h,
                    .stride_w = p.stride_w,
                    .origin_h = -p.pad_h,
                    .origin_w = -p.pad_w,
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .steps = 0,
                    .accumulate = false},
          .filter_c = p.c,
          .filter_k = p.k,
          .multiprocessors = device.multiprocessors,
          .fused = p.has_epilogue(),
          .act = p.act};
}

// dgrad with stride 1 gathers dy, padded by R-1-ph and S-1-pw, with the filter turned by 180 degrees.
inline WgmmaGather wgmma_dgrad_gather(const Conv2dProblem& p, const Device& device) {
  const int origin_h = p.pad_h - (p.r - 1), origin_w = p.pad_w - (p.s - 1);
  return {.src = {.base = nullptr,
                  .c = p.k,
                  .w = p.q(),
                  .h = p.p(),
                  .n = p.n,
                  .channel_stride = p.k,
                  .lower_w = origin_w,
                  .lower_h = origin_h,
                  .upper_w = -p.pad_w,
                  .upper_h = -p.pad_h,
                  .stride_w = 1,
                  .stride_h = 1,
                  .channels = 0,
                  .pixels = 0},
          .shape = {.rows = p.n * p.h * p.w,
                    .out_h = p.h,
                    .out_w = p.w,
                    .src_c = p.k,
                    .columns = p.c,
                    .r = p.r,
                    .s = p.s,
                    .stride_h = 1,
                    .stride_w = 1,
                    .origin_h = origin_h,
                    .origin_w = origin_w,
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .steps = 0,
                    .accumulate = p.accumulate},
          .filter_c = p.c,
          .filter_k = p.k,
          .multiprocessors = device.multiprocessors};
}

struct WgmmaBuffers {
  const void* src;
  const void* filter;
  const void* bias;
  void* out;
  const void* scale = nullptr;
  const void* residual = nullptr;
};

// What is behind the product, for the fused kernel.
inline Conv2dEpilogue wgmma_epilogue(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  return {.scale = static_cast<const float*>(buffers.scale),
          .bias = static_cast<const float*>(buffers.bias),
          .residual = buffers.residual,
          .clamp = act_clamp(gather.act)};
}

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
  for (const auto kernel : {conv2d_gather_wgmma_kernel<Config, kDgrad, false>,
                            conv2d_gather_wgmma_kernel<Config, kDgrad, !kDgrad>}) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
               "conv2d_gather_wgmma: shared memory");
  }
}

// The map of the filter, whose box is what one block loads of a B tile at once.
template <class Config, bool kDgrad>
CUtensorMap wgmma_filter_map(const WgmmaGather& gather, const void* filter) {
  const uint64_t c = gather.filter_c, taps = gather.shape.r * gather.shape.s;
  constexpr uint32_t kInner = kDgrad ? Config::kColumnSpan : Config::kBK;
  constexpr uint32_t kOuter = kDgrad ? Config::kBK : Config::kBN / Config::kCluster;
  return make_tiled_map(TiledMap<3>{.base = filter,
                                    .sizes = {c, taps, static_cast<uint64_t>(gather.filter_k)},
                                    .strides = {c, taps * c},
                                    .box = {kInner, 1, kOuter}});
}

template <class Config, class Shape>
Bound wgmma_bound(void (*kernel)(CUtensorMap, CUtensorMap, const float*, bf16*, Shape),
                  const CUtensorMap& src, const CUtensorMap& filter, const WgmmaBuffers& buffers,
                  const Shape& shape, unsigned blocks) {
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
    check_cuda(cudaLaunchKernelEx(&launch, kernel, src, filter, static_cast<const float*>(buffers.bias),
                                  static_cast<bf16*>(buffers.out), shape),
               "conv2d wgmma kernel");
  });
}

template <class Config, bool kDgrad>
Bound wgmma_bind(const WgmmaGather& gather, const WgmmaBuffers& buffers) {
  Im2colMap im2col = gather.src;
  im2col.base = buffers.src;
  im2col.channels = Config::kBK;
  im2col.pixels = Config::kBM;
  const CUtensorMap src = make_im2col_map(im2col);
  const CUtensorMap filter = wgmma_filter_map<Config, kDgrad>(gather, buffers.filter);
  const WgmmaShape g = shape_for<Config>(gather.shape);
  auto kernel = conv2d_gather_wgmma_kernel<Config, kDgrad, false>;
  if (!kDgrad && gather.fused) kernel = conv2d_gather_wgmma_kernel<Config, kDgrad, !kDgrad>;
  const GatheredShape shape = {.g = g, .epilogue = wgmma_epilogue(gather, buffers)};
  return wgmma_bound<Config>(kernel, src, filter, buffers, shape,
                             wgmma_grid<Config>(g, gather.multiprocessors));
}

// Clocks that a tile of `steps` stages is thought to take: as long as its products or its reads of L2, and
// its stores. Only ratios matter; the constants are the H100's (4096 FLOP, about 38 bytes of L2 a clock and
// multiprocessor; narrow products run below the full rate). `read_bytes`: over all steps.
template <class Config>
double wgmma_tile_cost(int steps, double read_bytes) {
  constexpr double kRate = Config::kBN >= 256   ? 1.0
                           : Config::kBN >= 128 ? 0.92
                           : Config::kBN >= 64  ? 0.85
                                                : 0.6;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  constexpr double kStores = 600 + 2.0 * Config::kBM * Config::kBN / 38;
  return std::max(steps * kProducts, read_bytes / 38) + kStores;
}

// Clocks of a launch: waves of tiles. `read_bytes`: a tile's.
template <class Config>
double wgmma_launch_cost(const WgmmaShape& g, double read_bytes, int multiprocessors) {
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  const long long clusters = wgmma_grid<Config>(g, multiprocessors) / Config::kCluster;
  return static_cast<double>(ceil_div(items, clusters)) * wgmma_tile_cost<Config>(g.steps, read_bytes);
}

// Bytes of L2 a clock and multiprocessor: of data that neighbours ask for at the same time, and of their own.
constexpr double kWgmmaSharedBytes = 79, kWgmmaOwnBytes = 31.5;

// Clocks of one stage, by the times of the tile shapes on an H100: products at a share of the full rate, or
// the copies. Column tiles are neighbours and read the same source.
template <class Config>
double wgmma_stage_clocks(int column_tiles) {
  constexpr double kRate = Config::kBN >= 256 ? 0.98 : Config::kBN >= 64 ? 0.92 : 0.57;
  constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
  const double source = Config::kABytes / kWgmmaOwnBytes * (0.31 + 0.69 / column_tiles);
  return std::max({kProducts, source, Config::kStageBytes / kWgmmaSharedBytes});
}

// Clocks of a gathered launch: waves of tiles, whose pixels the copy engine walks at 1.8 clocks each.
template <class Config>
double wgmma_cost(const WgmmaGather& gather) {
  const WgmmaShape g = shape_for<Config>(gather.shape);
  const double step = std::max(1.8 * Config::kBM, wgmma_stage_clocks<Config>(g.column_tiles));
  constexpr double kStores = 260 + 0.12 * Config::kBM * Config::kBN;
  const long long items = 1LL * ceil_div(g.row_tiles, Config::kCluster) * g.column_tiles;
  const long long clusters = wgmma_grid<Config>(g, gather.multiprocessors) / Config::kCluster;
  return static_cast<double>(ceil_div(items, clusters)) * (g.steps * step + kStores);
}

// The least of the automatic tile shapes.
inline double wgmma_least_cost(const WgmmaGather& gather) {
  return std::min(
      {wgmma_cost<WgmmaConfig<128, 256, 64, 4>>(gather), wgmma_cost<WgmmaConfig<256, 128, 64, 4>>(gather),
       wgmma_cost<WgmmaConfig<128, 128, 64, 6>>(gather), wgmma_cost<WgmmaConfig<256, 64, 64, 5>>(gather),
       wgmma_cost<WgmmaConfig<256, 32, 64, 5>>(gather), wgmma_cost<WgmmaConfig<256, 128, 32, 8>>(gather),
       wgmma_cost<WgmmaConfig<256, 64, 32, 8>>(gather), wgmma_cost<WgmmaConfig<256, 32, 32, 8>>(gather)});
}

// A compiled tile shape: what follows "wgmma:" in a choice.
template <class Gather>
struct WgmmaCandidateOf {
  std::string name;  // "128x256x64_s4", with clusters "128x256x64_s4_c2"
  bool automatic;    // taken unasked
  double (*cost)(const Gather&);
  void (*prepare)();
  Bound (*bind)(const Gather&, const WgmmaBuffers&);
};
using WgmmaCandidate = WgmmaCandidateOf<WgmmaGather>;

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
template <class Gather>
const WgmmaCandidateOf<Gather>& choose_wgmma(const std::vector<WgmmaCandidateOf<Gather>>& candidates,
                                             const Gather& gather, std::string_view name) {
  const WgmmaCandidateOf<Gather>* best = nullptr;
  std::string known;
  for (const auto& candidate : candidates) {
    if (candidate.name == name) return candidate;
    known += (known.empty() ? "" : ", ") + candidate.name;
    if (candidate.automatic && (!best || candidate.cost(gather) < best->cost(gather))) best = &candidate;
  }
  if (!name.empty()) fail_usage("conv2d: unknown wgmma tile '" + std::string(name) + "'; known: " + known);
  return *best;
}

// The tile shapes that take the problem, the least cost first.
template <class Gather>
std::vector<std::string> wgmma_configs(const std::vector<WgmmaCandidateOf<Gather>>& candidates,
                                       const Gather& gather) {
  std::vector<std::pair<double, std::string>> fitting;
  for (const auto& candidate : candidates) {
    if (const double cost = candidate.cost(gather); std::isfinite(cost))
      fitting.emplace_back(cost, candidate.name);
  }
  std::stable_sort(fitting.begin(), fitting.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (auto& [cost, name] : fitting) names.push_back(std::move(name));
  return names;
}

// The plan of a pass: `buffers(args)` names the pass's tensors.
template <class Args, class Gather>
Plan<Args> wgmma_plan(const std::vector<WgmmaCandidateOf<Gather>>& candidates, const Gather& gather,
                      std::string_view config, WgmmaBuffers (*buffers)(const Args&)) {
  const WgmmaCandidateOf<Gather>& tile = choose_wgmma(candidates, gather, config);
  if (!std::isfinite(tile.cost(gather))) {
    std::string known;
    for (const std::string& name : wgmma_configs(candidates, gather)) {
      known.append(known.empty() ? "" : ", ").append(name);
    }
    fail_usage("conv2d: the tile " + tile.name +
               " does not take this problem (an epilogue, or too many tiles); these do: " + known);
  }
  tile.prepare();
  return Plan<Args>(0, [gather, bind = tile.bind, buffers](const Args& args, void*) {
    require_aligned_args(&args, sizeof args);
    return bind(gather, buffers(args));
  });
}

// The tensors of each pass.
inline WgmmaBuffers wgmma_fwd_buffers(const Conv2dFwd::Args& a) {
  return {.src = a.x, .filter = a.w, .bias = a.bias, .out = a.y, .scale = a.scale, .residual = a.residual};
}
inline WgmmaBuffers wgmma_dgrad_buffers(const Conv2dDgrad::Args& a) {
  return {.src = a.dy, .filter = a.w, .bias = nullptr, .out = a.dx};
}

}  // namespace kiln
