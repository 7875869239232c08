// Host side of the strided dgrad by classes of pixels: the classes, the tile shapes and their costs, maps.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "kernels/conv2d/conv2d_wgmma_parity.cuh"
#include "kernels/conv2d/conv2d_wgmma_parity_shared.cuh"
#include "kernels/conv2d/conv2d_wgmma_plan.cuh"

namespace kiln {

inline Support parity_supports(const Conv2dProblem& p, const Device& device) {
  if (p.stride_h == 1 && p.stride_w == 1) return Support::no("a stride of 1 has one class");
  if (p.stride_h * p.stride_w > kMaxParityClasses) return Support::no("strides must make at most 16 classes");
  if (p.x_channels() != p.c) return Support::no("the channel stride must be the channels");
  if (const Support plain = conv2d_takes_no_gate(p); !plain) return plain;
  return wgmma_gather_supports(p, device);
}

// A strided dgrad without its buffers.
struct ParityGather {
  WgmmaGather whole;  // dy and the filter; corners belong to a class
  ParityShape shape;  // row_tiles, steps, column_tiles, items and joined belong to a tile shape
  double dy_bytes, dx_bytes, l2_bytes;
};

// The pixels first, first + stride, ... of one axis, and their taps.
struct ParityAxis {
  int extent, first_tap, taps, origin;
  ParityAxis(int first, int stride, int pad, int length, int filter)
      : extent((length - first - 1) / stride + 1),
        first_tap((first + pad) % stride),
        taps(first_tap < filter ? (filter - first_tap - 1) / stride + 1 : 0),
        origin((first + pad - first_tap) / stride - (taps - 1)) {}
};

// The classes that are computed, most taps first. Under += those without taps are left out.
inline ParityShape parity_classes(const Conv2dProblem& p) {
  ParityShape g = {};
  for (int h = 0; h < std::min(p.stride_h, p.h); ++h) {
    for (int w = 0; w < std::min(p.stride_w, p.w); ++w) {
      const ParityAxis y(h, p.stride_h, p.pad_h, p.h, p.r), x(w, p.stride_w, p.pad_w, p.w, p.s);
      if (p.accumulate && y.taps * x.taps == 0) continue;
      g.classes[g.count++] = {.rows = p.n * y.extent * x.extent,
                              .extent_h = y.extent,
                              .extent_w = x.extent,
                              .first_h = h,
                              .first_w = w,
                              .origin_h = y.origin,
                              .origin_w = x.origin,
                              .taps_h = y.taps,
                              .taps_w = x.taps,
                              .first_r = y.first_tap,
                              .first_s = x.first_tap,
                              .row_tiles = 0,
                              .steps = 0,
                              .by_h = FastDivisor(y.extent),
                              .by_w = FastDivisor(x.extent)};
    }
  }
  std::stable_sort(g.classes, g.classes + g.count, [](const ParityClass& a, const ParityClass& b) {
    return a.taps_h * a.taps_w > b.taps_h * b.taps_w;
  });
  g.src_c = p.k;
  g.columns = p.c;
  g.s = p.s;
  g.stride_h = p.stride_h;
  g.stride_w = p.stride_w;
  g.out_h = p.h;
  g.out_w = p.w;
  g.accumulate = p.accumulate;
  return g;
}

inline ParityGather parity_gather(const Conv2dProblem& p, const Device& device) {
  return {.whole = wgmma_dgrad_gather(p, device),
          .shape = parity_classes(p),
          .dy_bytes = 2.0 * p.n * p.p() * p.q() * p.k,
          .dx_bytes = 2.0 * p.n * p.h * p.w * p.c * (p.accumulate ? 2 : 1),
          .l2_bytes = static_cast<double>(device.l2_bytes)};
}

template <class Config>
ParityShape parity_shape_for(ParityShape g, bool joined) {
  int most = 0, sum = 0;
  for (int i = 0; i < g.count; ++i) {
    ParityClass& c = g.classes[i];
    c.row_tiles = ceil_div(c.rows, Config::kBM);
    c.steps = c.taps_h * c.taps_w * ceil_div(g.src_c, Config::kBK);
    most = std::max(most, c.row_tiles);
    sum += c.row_tiles;
  }
  g.column_tiles = ceil_div(g.columns, Config::kBN);
  g.items = (joined ? most : sum) * g.column_tiles;
  g.joined = joined;
  return g;
}

inline unsigned parity_grid(const ParityShape& g, int multiprocessors) {
  return static_cast<unsigned>(std::min(g.items, multiprocessors));
}

// Clocks of a launch: those of the busiest block, or of device memory (12.9 bytes a clock and multiprocessor
// on the H100), which in part go on at the same time. Where an order does not keep the uses of dy together,
// and dy is large beside L2, every class reads it from device memory.
template <class Config, bool kJoined>
double parity_cost(const ParityGather& gather) {
  const ParityShape g = parity_shape_for<Config>(gather.shape, kJoined);
  const int blocks = static_cast<int>(parity_grid(g, gather.whole.multiprocessors));
  std::vector<double> busy(blocks);
  int item = 0, readers = 0;
  for (int i = 0; i < g.count; ++i) {
    const ParityClass& c = g.classes[i];
    const double clocks = wgmma_tile_cost<Config>(c.steps, 1.0 * c.steps * Config::kStageBytes);
    if (kJoined) item = 0;
    for (int tile = 0; tile < c.row_tiles * g.column_tiles; ++tile, ++item) {
      const int place = item % blocks;
      busy[item / blocks % 2 ? blocks - 1 - place : place] += clocks;
    }
    readers += c.steps > 0;
  }
  const double reads = !kJoined && gather.dy_bytes > gather.l2_bytes / 2 ? readers : 1;
  const double memory = (reads * gather.dy_bytes + gather.dx_bytes) / (12.9 * gather.whole.multiprocessors);
  const double work = *std::max_element(busy.begin(), busy.end());
  const double spread = kJoined ? 1.0 : 1.1;  // neighbouring pixels are written far apart in time
  return spread * (std::max(work, memory) + std::min(work, memory) / 4);
}

// The maps of dy, one a class with taps: its corners bound the class's pixels under displacement (0, 0).
template <class Config>
ParityMaps parity_maps(const ParityGather& gather, const ParityShape& g, const void* dy) {
  ParityMaps maps = {};
  for (int i = 0; i < g.count && g.classes[i].steps > 0; ++i) {
    const ParityClass& c = g.classes[i];
    Im2colMap im2col = gather.whole.src;
    im2col.base = dy;
    im2col.channels = Config::kBK;
    im2col.pixels = Config::kBM;
    im2col.lower_h = c.origin_h;
    im2col.lower_w = c.origin_w;
    im2col.upper_h = c.origin_h + c.extent_h - im2col.h;
    im2col.upper_w = c.origin_w + c.extent_w - im2col.w;
    maps.src[i] = make_im2col_map(im2col);
  }
  return maps;
}

template <class Config, bool kJoined>
Bound parity_bind(const ParityGather& gather, const WgmmaBuffers& buffers) {
  const ParityShape g = parity_shape_for<Config>(gather.shape, kJoined);
  const ParityMaps maps = parity_maps<Config>(gather, g, buffers.src);
  const CUtensorMap filter = wgmma_filter_map<Config, true>(gather.whole, buffers.filter);
  const unsigned blocks = parity_grid(g, gather.whole.multiprocessors);
  return Bound([=, dx = static_cast<bf16*>(buffers.out)](Stream stream) {
    conv2d_dgrad_wgmma_parity_kernel<Config>
        <<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(maps, filter, dx, g);
    check_launch("conv2d_dgrad_wgmma_parity_kernel");
  });
}

using ParityCandidate = WgmmaCandidateOf<ParityGather>;

template <class Config, bool kJoined>
ParityCandidate parity_candidate() {
  static_assert(sizeof(ParityMaps) + sizeof(CUtensorMap) + sizeof(ParityShape) + 64 <= 4096,
                "parameters of one launch");
  std::string name = std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
                     std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages);
  if (!kJoined) name += "_split";
  return {name, true, parity_cost<Config, kJoined>,
          [] {
            check_cuda(cudaFuncSetAttribute(conv2d_dgrad_wgmma_parity_kernel<Config>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
                       "conv2d_dgrad_wgmma_parity: shared memory");
          },
          parity_bind<Config, kJoined>};
}

// Where the four classes share their copies of dy: see conv2d_wgmma_parity_shared.cuh.
inline bool parity_shares(const ParityGather& gather) {
  const ParityShape& g = gather.shape;
  const Im2colMap& dy = gather.whole.src;
  const auto is = [](int a, int b, int value) { return a == value && b == value; };
  return is(gather.whole.shape.r, g.s, 3) && is(g.stride_h, g.stride_w, 2) &&
         is(gather.whole.shape.origin_h, gather.whole.shape.origin_w, -1) && g.out_h == 2 * dy.h &&
         g.out_w == 2 * dy.w && g.columns <= ParitySharedConfig::kColumnSpan &&
         g.src_c <= ParitySharedConfig::kSlices * ParitySharedConfig::kBK;
}

inline double parity_shared_cost(const ParityGather& gather) {
  using Config = ParitySharedConfig;
  if (!parity_shares(gather)) return std::numeric_limits<double>::infinity();
  const ParityShape g = parity_shape_for<Config>(gather.shape, true);
  const int blocks = static_cast<int>(parity_grid(g, gather.whole.multiprocessors));
  // Nine products of 64 columns, which read shared memory at its full rate, and four stores.
  const double slice = Config::kTaps * 2.0 * Config::kBM * 64 * Config::kBK / (4096 * 0.82);
  const double tile = ceil_div(g.src_c, Config::kBK) * slice + 600 + 2.0 * Config::kBM * Config::kBN / 38;
  const double work = ceil_div(g.items, blocks) * tile;
  const double memory = (gather.dy_bytes + gather.dx_bytes) / (12.9 * gather.whole.multiprocessors);
  return std::max(work, memory) + std::min(work, memory) / 4;
}

inline Bound parity_shared_bind(const ParityGather& gather, const WgmmaBuffers& buffers) {
  using Config = ParitySharedConfig;
  if (!parity_shares(gather)) fail_usage("conv2d wgmma_parity: the classes cannot share copies of dy");
  const ParityShape g = parity_shape_for<Config>(gather.shape, true);
  const CUtensorMap dy = parity_maps<Config>(gather, g, buffers.src).src[0];
  const CUtensorMap filter = wgmma_filter_map<Config, true>(gather.whole, buffers.filter);
  const unsigned blocks = parity_grid(g, gather.whole.multiprocessors);
  return Bound([=, dx = static_cast<bf16*>(buffers.out)](Stream stream) {
    conv2d_dgrad_wgmma_parity_shared_kernel<Config>
        <<<blocks, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(dy, filter, dx, g);
    check_launch("conv2d_dgrad_wgmma_parity_shared_kernel");
  });
}

inline ParityCandidate parity_shared_candidate() {
  return {"shared", true, parity_shared_cost,
          [] {
            check_cuda(cudaFuncSetAttribute(conv2d_dgrad_wgmma_parity_shared_kernel<ParitySharedConfig>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            ParitySharedConfig::kSmemBytes),
                       "conv2d_dgrad_wgmma_parity_shared: shared memory");
          },
          parity_shared_bind};
}

inline const std::vector<ParityCandidate>& parity_candidates() {
  static const std::vector<ParityCandidate> all = [] {
    std::vector<ParityCandidate> list;
    const auto add = [&]<class Config>(Config) {
      list.push_back(parity_candidate<Config, true>());
      list.push_back(parity_candidate<Config, false>());
    };
    add(WgmmaConfig<128, 256, 64, 4>());
    add(WgmmaConfig<256, 128, 64, 4>());
    add(WgmmaConfig<128, 128, 64, 6>());
    add(WgmmaConfig<256, 64, 64, 5>());
    add(WgmmaConfig<256, 32, 64, 5>());
    add(WgmmaConfig<256, 64, 32, 8>());
    list.push_back(parity_shared_candidate());
    return list;
  }();
  return all;
}

}  // namespace kiln
