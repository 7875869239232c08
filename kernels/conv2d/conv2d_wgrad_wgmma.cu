// conv2d wgrad: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*sh+r-ph, q*sw+s-pw, c], dbias[k] = sum
// dy[n,p,q,k], on Hopper's tensor cores.
//
// Implicit GEMM whose sum runs over output pixels, see conv2d_wgrad_wgmma.cuh: dy's tile is cut by TMA, x's
// is gathered by its im2col mode, and wgmma reads both across their rows. Pixels are split over blocks to
// fill the chip; each split writes fp32 sums to the workspace and a second kernel adds them in fixed order;
// dbias likewise. One block a multiprocessor, 177 to 225 KiB of shared memory. Config "wgmma:128x256x64_s4":
// output channels x columns x pixels of a stage, stages. Needs compute capability 9.0, bf16, channels in
// multiples of 8. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgrad_wgmma.cuh"

#include <string>
#include <vector>

#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

Support supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  if (p.r > 127 || p.s > 127) return Support::no("filter sides must be at most 127 (im2col corners)");
  return Support::require(p.stride_h <= 8 && p.stride_w <= 8, "strides must be at most 8 (im2col steps)");
}

// A tile shape applied to a problem.
template <class Config>
struct Layout {
  WgradWgmmaShape shape;
  Split split;
  dim3 grid;

  Layout(const Conv2dProblem& p, const Device& device)
      : shape{.pixels = p.n * p.p() * p.q(),
              .pixels_per_split = 0,
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
              .columns = p.r * p.s * p.c} {
    const int column_tiles = ceil_div(shape.column_boxes, Config::kBBoxes),
              row_tiles = ceil_div(p.k, Config::kBM);
    split = choose_split(shape.pixels, Config::kBK, 1LL * column_tiles * row_tiles, device.multiprocessors,
                         1LL * shape.k * shape.columns);
    shape.pixels_per_split = split.length;
    grid = dim3(column_tiles, row_tiles, split.count);
  }

  // Clocks the kernels are thought to take (H100; only ratios matter): waves of tiles, each as long as its
  // products or its reads of L2 take, and its stores; then the sum over splits.
  double cost(const Device& device) const {
    constexpr double kRate = Config::kN >= 192 ? 1.0 : Config::kN >= 96 ? 0.92 : 0.85;
    constexpr double kProducts = 2.0 * Config::kBM * Config::kBN * Config::kBK / (4096 * kRate);
    constexpr double kReads = Config::kStageBytes / 38.0;
    constexpr double kStores = 1000 + 4.0 * Config::kBM * Config::kBN / 20;
    const long long blocks = 1LL * grid.x * grid.y * grid.z;
    const double waves = static_cast<double>(ceil_div(blocks, device.multiprocessors));
    const double sum =
        split.count > 1 ? 5000 + 4.0 * split.count * shape.k * shape.columns / (15.0 * device.multiprocessors)
                        : 0;
    return waves * (ceil_div(split.length, Config::kBK) * std::max(kProducts, kReads) + kStores) + sum;
  }
};

template <class Config>
double cost_of(const Conv2dProblem& p, const Device& device) {
  return Layout<Config>(p, device).cost(device);
}

Im2colMap x_map(const Conv2dProblem& p, const void* x, int channels, int pixels) {
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

TiledMap<3> dy_map(const Conv2dProblem& p, const void* dy, uint32_t pixels) {
  const uint64_t k = p.k, rows = static_cast<uint64_t>(p.n) * p.p() * p.q();
  return {.base = dy, .sizes = {k, rows, 1}, .strides = {k, k * rows}, .box = {64, pixels, 1}};
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device) {
  const Layout<Config> layout(p, device);
  const WgradWgmmaShape g = layout.shape;
  const int splits = layout.split.count, outputs = g.k * g.columns;
  const auto kernel = conv2d_wgrad_wgmma_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_wgrad_wgmma: shared memory");
  const Split bias_split = choose_split(g.pixels, 64, ceil_div(g.k, 32), 8LL * device.multiprocessors, g.k);
  const size_t bias_floats = p.bias ? static_cast<size_t>(bias_split.count) * g.k : 0;
  const size_t partial_floats = splits > 1 ? static_cast<size_t>(splits) * outputs : 0;
  return Plan<Conv2dWgrad::Args>(
      (partial_floats + bias_floats) * sizeof(float),
      [=, grid = layout.grid](const Conv2dWgrad::Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const CUtensorMap dy = make_tiled_map(dy_map(p, a.dy, Config::kBK));
        const CUtensorMap x = make_im2col_map(x_map(p, a.x, Config::kSpan, Config::kBK));
        float* dw = static_cast<float*>(a.dw);
        float* scratch = static_cast<float*>(workspace);
        float* partial = splits > 1 ? scratch : dw;
        return Bound([=](Stream stream) {
          kernel<<<grid, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(dy, x, partial, g);
          check_launch("conv2d_wgrad_wgmma_kernel");
          if (splits > 1) sum_splits(partial, splits, outputs, dw, stream);
          if (a.dbias) {
            sum_rows(static_cast<const bf16*>(a.dy), g.pixels, g.k, bias_split, scratch + partial_floats,
                     static_cast<float*>(a.dbias), stream);
          }
        });
      });
}

// A compiled tile shape: what follows "wgmma:" in a choice.
struct Candidate {
  std::string name;
  double (*cost)(const Conv2dProblem&, const Device&);
  Plan<Conv2dWgrad::Args> (*plan)(const Conv2dProblem&, const Device&);
};

template <class Config>
Candidate candidate() {
  return {std::to_string(Config::kBM) + "x" + std::to_string(Config::kBN) + "x" +
              std::to_string(Config::kBK) + "_s" + std::to_string(Config::kStages),
          cost_of<Config>, plan_for<Config>};
}

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {candidate<WgradWgmmaConfig<2, 1, 1, 256, 64, 64, 4>>(),
                                             candidate<WgradWgmmaConfig<2, 1, 1, 192, 64, 64, 5>>(),
                                             candidate<WgradWgmmaConfig<2, 1, 2, 128, 64, 64, 4>>(),
                                             candidate<WgradWgmmaConfig<2, 1, 1, 64, 64, 64, 8>>(),
                                             candidate<WgradWgmmaConfig<1, 2, 1, 192, 64, 64, 4>>(),
                                             candidate<WgradWgmmaConfig<1, 3, 1, 192, 64, 32, 5>>(),
                                             candidate<WgradWgmmaConfig<1, 3, 1, 96, 32, 64, 4>>()};
  return all;
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_wgmma = {
    .name = "wgmma",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const Candidate* best = nullptr;
          double best_cost = 0;
          std::string known;
          for (const Candidate& tile : candidates()) {
            const double cost = tile.cost(p, device);
            if (tile.name == config) return tile.plan(p, device);
            if (!best || cost < best_cost) best = &tile, best_cost = cost;
            known += (known.empty() ? "" : ", ") + tile.name;
          }
          if (!config.empty())
            fail_usage("conv2d wgmma: unknown tile '" + std::string(config) + "'; known: " + known);
          return best->plan(p, device);
        },
    .configs =
        [](const Conv2dProblem&, const Device&) {
          std::vector<std::string> names;
          for (const Candidate& tile : candidates()) names.push_back(tile.name);
          return names;
        }};

}  // namespace kiln
