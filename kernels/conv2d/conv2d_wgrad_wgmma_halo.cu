// conv2d wgrad for 3x3 filters of stride 1: dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n, p+r-ph, q+s-pw, c],
// dbias[k] = sum dy[n,p,q,k], on Hopper's tensor cores, all taps reading one copy of x in shared memory.
//
// See conv2d_wgrad_wgmma_halo.cuh for the kernel. A block owns 64 output channels x one slice of input
// channels x all nine taps, over a range of whole images; each range writes fp32 sums to the workspace and a
// second kernel adds them in fixed order; dbias likewise. One block a multiprocessor, 209 to 225 KiB of
// shared memory. Config "64x32x64_s10": output x input channels x pixels of a stage, stages; "shift": filter
// columns share a copy too. Needs compute capability 9.0, bf16, channels in multiples of 8, output rows of at
// most 64 pixels. Deterministic. Mirrors cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_wgrad_wgmma_halo.cuh"

#include <string>
#include <vector>

#include "kernels/common/tensor_map.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_split_sum.cuh"

namespace kiln {
namespace {

constexpr int kShortestChain = 2048;  // see longest_chain

Support supports(const Conv2dProblem& p, const Device& device) {
  if (device.sm != 90) return Support::no("wgmma needs compute capability 9.0");
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.r != 3 || p.s != 3 || p.stride_h != 1 || p.stride_w != 1)
    return Support::no("the filter must be 3x3 of stride 1");
  if (p.c % 8 || p.x_channels() % 8)
    return Support::no("input channels and their stride must be multiples of 8");
  if (p.k % 8) return Support::no("output channels must be a multiple of 8");
  return Support::require(p.q() <= 64, "output rows must be at most 64 pixels");
}

int row_pixels(const Conv2dProblem& p) { return ceil_div(p.q(), 16) * 16; }

// Where L2 and the gathering of nine taps limit the im2col product: few channels on both sides; and where
// rows of whole sixteens waste little and images fill the GPU.
bool preferred(const Conv2dProblem& p, const Device& device) {
  return p.k <= 64 && p.c <= 64 && 10 * p.q() >= 9 * row_pixels(p) && 2 * p.n >= device.multiprocessors;
}

// A channel slice applied to a problem.
template <class Config>
struct Layout {
  WgradHaloShape shape;
  int splits = 1;
  dim3 grid;

  Layout(const Conv2dProblem& p, const Device& device) {
    const int pixels = row_pixels(p), rows = Config::kPixels / pixels;
    shape = {.images = p.n,
             .images_per_split = 0,
             .p = p.p(),
             .pad_h = p.pad_h,
             .pad_w = p.pad_w,
             .k = p.k,
             .c = p.c,
             .columns = 9 * p.c,
             .row_pixels = pixels,
             .x_row_pixels = Config::kCopies ? pixels : pixels + 2,
             .rows = rows,
             .back = ceil_div(2, rows),
             .stages_an_image = ceil_div(p.p() + 2, rows)};
    const int slices = ceil_div(p.c, Config::kSpan), k_tiles = ceil_div(p.k, 64);
    shape.images_per_split =
        choose_images(1LL * slices * k_tiles, device.multiprocessors,
                      longest_chain(p.n * p.p() * p.q(), kShortestChain) / (p.p() * p.q()));
    splits = ceil_div(p.n, shape.images_per_split);
    grid = dim3(slices, k_tiles, splits);
  }

 private:
  // Images of a split, at most `most`: the fewest stages in whole waves of blocks, a block's start and its
  // sums counted as twelve; at most 128 MiB of sums.
  int choose_images(long long tiles, int multiprocessors, int most) const {
    const long long splits_limit = std::clamp((32LL << 20) / (1LL * shape.k * shape.columns), 1LL, 65535LL);
    const int limit = std::min(std::max(most, 1), shape.images);
    int best = shape.images;
    double best_cost = 0;
    for (int images = limit; images >= 1; --images) {
      const long long count = ceil_div(shape.images, images);
      if (count > splits_limit) break;
      const double cost = static_cast<double>(ceil_div(tiles * count, multiprocessors)) *
                          (1.0 * images * shape.stages_an_image + 12);
      if (best_cost == 0 || cost < best_cost) best = images, best_cost = cost;
    }
    return best;
  }
};

template <class Config>
CUtensorMap dy_map(const Conv2dProblem& p, const WgradHaloShape& g, const void* dy) {
  const uint64_t k = p.k, q = p.q(), rows = p.p();
  return make_tiled_map(
      TiledMap<4>{.base = dy,
                  .sizes = {k, q, rows, static_cast<uint64_t>(p.n)},
                  .strides = {k, k * q, k * q * rows},
                  .box = {64, static_cast<uint32_t>(g.row_pixels), static_cast<uint32_t>(g.rows), 1}});
}

template <class Config>
CUtensorMap x_map(const Conv2dProblem& p, const WgradHaloShape& g, const void* x) {
  const uint64_t pixel = p.x_channels(), w = p.w, h = p.h;
  return make_tiled_map(TiledMap<4>{
      .base = x,
      .sizes = {static_cast<uint64_t>(p.c), w, h, static_cast<uint64_t>(p.n)},
      .strides = {pixel, pixel * w, pixel * w * h},
      .box = {Config::kSpan, static_cast<uint32_t>(g.x_row_pixels), static_cast<uint32_t>(g.rows), 1}});
}

template <class Config>
Plan<Conv2dWgrad::Args> plan_for(const Conv2dProblem& p, const Device& device) {
  const Layout<Config> layout(p, device);
  const WgradHaloShape g = layout.shape;
  const int splits = layout.splits, outputs = g.k * g.columns, pixels = p.n * p.p() * p.q();
  const auto kernel = conv2d_wgrad_halo_wgmma_kernel<Config>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes),
             "conv2d_wgrad_wgmma_halo: shared memory");
  const Split bias_split = choose_split(pixels, 64, ceil_div(g.k, 32), 8LL * device.multiprocessors, g.k);
  const size_t bias_floats = p.bias ? static_cast<size_t>(bias_split.count) * g.k : 0;
  const size_t partial_floats = splits > 1 ? static_cast<size_t>(splits) * outputs : 0;
  return Plan<Conv2dWgrad::Args>(
      (partial_floats + bias_floats) * sizeof(float),
      [=, grid = layout.grid](const Conv2dWgrad::Args& a, void* workspace) {
        require_aligned_args(&a, sizeof a);
        const CUtensorMap dy = dy_map<Config>(p, g, a.dy), x = x_map<Config>(p, g, a.x);
        float* dw = static_cast<float*>(a.dw);
        float* scratch = static_cast<float*>(workspace);
        float* partial = splits > 1 ? scratch : dw;
        return Bound([=](Stream stream) {
          kernel<<<grid, Config::kThreads, Config::kSmemBytes, cuda_stream(stream)>>>(dy, x, partial, g);
          check_launch("conv2d_wgrad_halo_wgmma_kernel");
          if (splits > 1) sum_splits(partial, splits, outputs, dw, stream);
          if (a.dbias) {
            sum_rows(static_cast<const bf16*>(a.dy), pixels, g.k, bias_split, scratch + partial_floats,
                     static_cast<float*>(a.dbias), stream);
          }
        });
      });
}

struct Candidate {
  std::string name;
  int span;
  Plan<Conv2dWgrad::Args> (*plan)(const Conv2dProblem&, const Device&);
};

template <class Config>
Candidate candidate() {
  return {"64x" + std::to_string(Config::kSpan) + "x64" + (Config::kCopies ? "" : "_shift") + "_s" +
              std::to_string(Config::kStages),
          Config::kSpan, plan_for<Config>};
}

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
      candidate<WgradHaloConfig<64, true, 7>>(), candidate<WgradHaloConfig<32, true, 11>>(),
      candidate<WgradHaloConfig<64, false, 13>>(), candidate<WgradHaloConfig<32, false, 16>>()};
  return all;
}

}  // namespace

extern const Impl<Conv2dWgrad> conv2d_wgrad_wgmma_halo = {
    .name = "wgmma_halo",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          std::string known;
          for (const Candidate& tile : candidates()) {
            if (tile.name == config) return tile.plan(p, device);
            known += (known.empty() ? "" : ", ") + tile.name;
          }
          if (!config.empty()) {
            fail_usage("conv2d wgmma_halo: unknown tile '" + std::string(config) + "'; known: " + known);
          }
          // One copy of x; the wider slice unless it holds a third less.
          const bool narrow = 4 * ceil_div(p.c, 32) * 32 <= 3 * ceil_div(p.c, 64) * 64;
          return candidates()[narrow ? 3 : 2].plan(p, device);
        },
    .configs =
        [](const Conv2dProblem&, const Device&) {
          std::vector<std::string> names;
          for (const Candidate& tile : candidates()) names.push_back(tile.name);
          return names;
        },
    .preferred = preferred};

}  // namespace kiln
