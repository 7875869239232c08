// Host side of the wgmma gathered product: tensor maps, the compiled tile shapes, the choice among them,
// launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/counters.h"
#include "kernels/common/launch.h"
#include "kernels/conv2d/conv2d_wgmma_cost.cuh"

namespace kiln {

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
    launch_kernel(kernel, "conv2d wgmma kernel",
                  {.grid = blocks,
                   .threads = Config::kThreads,
                   .shared_bytes = Config::kSmemBytes,
                   .cluster = Config::kCluster},
                  stream, src, filter, static_cast<const float*>(buffers.bias),
                  static_cast<bf16*>(buffers.out), shape);
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
  const WgmmaShape g = with_gate(shape_for<Config>(gather.shape), gather, buffers, kDgrad);
  auto kernel = conv2d_gather_wgmma_kernel<Config, kDgrad, false>;
  if (!kDgrad && gather.fused) kernel = conv2d_gather_wgmma_kernel<Config, kDgrad, !kDgrad>;
  GatheredShape shape = {.g = g, .epilogue = wgmma_epilogue(gather, buffers)};
  const unsigned blocks = wgmma_launch_grid<Config>(gather, g);
  shape.epilogue.stats = wgmma_stats(gather, buffers, blocks / g.column_tiles);
  return wgmma_bound<Config>(kernel, src, filter, buffers, shape, blocks);
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

// The same with statistics, whose counters of blocks belong to a binding.
template <class Args, class Gather>
Plan<Args> wgmma_stats_plan(const Gather& gather, Bound (*bind)(const Gather&, const WgmmaBuffers&),
                            WgmmaBuffers (*buffers)(const Args&)) {
  const size_t bytes = wgmma_stats_bytes(gather.multiprocessors);
  return Plan<Args>(bytes, [gather, bind, buffers](const Args& args, void* workspace) {
    require_aligned_args(&args, sizeof args);
    const auto counters = zeroed_counters(ceil_div(gather.shape.columns, 32));
    WgmmaBuffers with = buffers(args);
    with.workspace = workspace;
    with.arrived = static_cast<unsigned*>(counters->data());
    return Bound([counters, bound = bind(gather, with)](Stream stream) { bound.launch(stream); });
  });
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
  if constexpr (requires { gather.stats; }) {
    if (gather.stats) return wgmma_stats_plan<Args>(gather, tile.bind, buffers);
  }
  return Plan<Args>(0, [gather, bind = tile.bind, buffers](const Args& args, void*) {
    require_aligned_args(&args, sizeof args);
    return bind(gather, buffers(args));
  });
}

}  // namespace kiln
