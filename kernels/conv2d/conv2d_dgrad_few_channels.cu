// conv2d dgrad: dx[n,h,w,c] (+)= sum_{k,r,s : h = p*sh+r-ph, w = q*sw+s-pw} dy[n,p,q,k] * w[k,r,s,c], few
// channels c.
//
// The time is dy's. With three columns, those of dx, a product would leave the tensor cores idle, so the taps
// are made columns too: t[n,p,q,(r,s,c)] = sum_k dy[n,p,q,k] * w[k,r,s,c] for the pixels above some rows of
// dx, kept in shared memory, and each element of dx adds its taps of t in the order of r, s ("col2im"). Rows
// of the product are pixels; which step of the sum takes which channel is free: with eight channels in a row
// for one thread the fragments are 16-byte loads of dy. A block is persistent; a warp owns 16 pixels at a
// time, their dy loaded one turn ahead; up to 64 channels x 32 terms of the filter are kept in registers,
// other shapes read it from shared memory. Shared memory: t, (filter); 63 KiB at 32 x 32 x 3. dy is read once
// but for R-1 rows between tiles. Needs bf16, c <= 8, k % 8 == 0. Deterministic. Mirrors
// cpu_reference/conv2d_naive.cpp.
#include "kernels/conv2d/conv2d_dgrad_few_channels.cuh"

namespace kiln {
namespace {

template <class Config>
__global__ __launch_bounds__(kFewThreads, Config::kBlocks) void conv2d_dgrad_few_channels_kernel(
    const bf16* __restrict__ dy,  // [N,P,Q,K]
    const bf16* __restrict__ w,   // [K,R,S,C]
    bf16* __restrict__ dx,        // [N,H,W,c_stride]
    const __grid_constant__ DgradShape g) {
  extern __shared__ __align__(128) unsigned char smem[];
  auto* t = reinterpret_cast<float*>(smem);
  auto* filter_tile = reinterpret_cast<uint2*>(t + g.pixels * g.pitch);  // [step][tile][lane]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int n_tiles = (g.terms + 7) / 8, units = (g.k + 31) / 32;
  const auto dy_of = [&](const DgradTile& tile) { return dy + static_cast<size_t>(tile.first_pixel) * g.k; };

  int next = blockIdx.x;
  DgradFilter<Config> filter;
  Gradients<Config> gradients;
  if constexpr (Config::kResident) {
    const DgradTile first = dgrad_tile(g, next);
    load_gradients<Config>(gradients, dy_of(first), g.k, 0, first.pixels, warp);
#pragma unroll
    for (int i = 0; i < 4 * Config::kUnits * Config::kNT; ++i) {
      const int step = i / (2 * Config::kNT), tile = i / 2 % Config::kNT;
      filter.v[step][tile][i % 2] = filter_word(g, w, step, tile, i % 2);
    }
  } else {
    for (int i = warp; i < 2 * units * n_tiles; i += kFewWarps) {
      const int step = i / n_tiles, tile = i % n_tiles;
      filter_tile[i * 32 + lane] =
          make_uint2(filter_word(g, w, step, tile, 0), filter_word(g, w, step, tile, 1));
    }
    __syncthreads();  // the filter is complete
  }
  while (next < g.tiles) {
    const DgradTile tile = dgrad_tile(g, next);
    const bf16* from = dy_of(tile);
    next += gridDim.x;
    for (int step = warp; step * 16 < tile.pixels; step += kFewWarps) {
      if constexpr (Config::kResident) {
        const Gradients<Config> now = gradients;
        load_gradients<Config>(gradients, from, g.k, 0, tile.pixels, step + kFewWarps);
        DgradSums<Config> sums = {};
#pragma unroll
        for (int unit = 0; unit < Config::kUnits; ++unit) {
          multiply<Config>(sums, now.v[unit], [&](int half, int j) {
            return make_uint2(filter.v[2 * unit + half][j][0], filter.v[2 * unit + half][j][1]);
          });
        }
        store_terms<Config>(sums, g, step, 0, t);
      } else {
        for (int first = 0; first < n_tiles; first += Config::kNT) {
          DgradSums<Config> sums = {};
          for (int unit = 0; unit < units; ++unit) {
            load_gradients<Config>(gradients, from, g.k, unit, tile.pixels, step);
            multiply<Config>(sums, gradients.v[0], [&](int half, int j) {
              return filter_tile[((2 * unit + half) * n_tiles + min(first + j, n_tiles - 1)) * 32 + lane];
            });
          }
          store_terms<Config>(sums, g, step, first, t);
        }
      }
    }
    if (Config::kResident && next < g.tiles) {
      const DgradTile after = dgrad_tile(g, next);
      load_gradients<Config>(gradients, dy_of(after), g.k, 0, after.pixels, warp);
    }
    __syncthreads();  // t is complete
    store_tile(g, tile, t, dx);
    __syncthreads();  // t has been read by all
  }
}

DgradShape shape_of(const Conv2dProblem& a, int rows) {
  DgradShape g = {};
  g.n = a.n, g.h = a.h, g.w = a.w, g.c = a.c, g.k = a.k, g.r = a.r, g.s = a.s, g.p = a.p(), g.q = a.q();
  g.stride_h = a.stride_h, g.stride_w = a.stride_w, g.pad_h = a.pad_h, g.pad_w = a.pad_w;
  g.x_stride = a.x_channels();
  g.accumulate = a.accumulate;
  g.rows = std::min(rows, g.h);
  g.images = g.rows == g.h ? std::clamp(kFewPixels / 4 / (g.h * g.w), 1, g.n) : 1;
  g.row_tiles = ceil_div(g.h, g.rows);
  g.tiles = ceil_div(g.n, g.images) * g.row_tiles;
  g.terms = g.r * g.s * g.c;
  g.pitch = ceil_div(g.terms, 2) * 2;
  if (g.pitch % 16 == 0) g.pitch += 4;  // else the pixels of a warp meet in the same banks
  const int t_rows = std::min(g.p, ceil_div(g.rows + g.r - 1, g.stride_h));
  g.pixels = ceil_div(g.images * t_rows * g.q, 16) * 16;
  g.row_reciprocal = static_cast<uint32_t>((1ULL << 32) / (g.w * g.x_stride) + 1);
  g.pixel_reciprocal = static_cast<uint32_t>((1ULL << 32) / g.x_stride + 1);
  return g;
}

template <class Config>
int smem_bytes(const DgradShape& g) {
  const int64_t filter = Config::kResident ? 0 : 512LL * ceil_div(g.k, 32) * ceil_div(g.terms, 8);
  const int64_t t = 1LL * g.pixels * g.pitch * static_cast<int64_t>(sizeof(float));
  return static_cast<int>(std::min<int64_t>(t + filter, 1 << 30));
}

// Rows of dx of a tile: those that finish first, counting the pixels of dy that tiles read twice.
template <class Config>
int best_rows(const Conv2dProblem& p, const Device& device) {
  const int limit = static_cast<int>(device.smem_per_block) / Config::kBlocks - 1024;
  int best = 1;
  double best_cost = 0;
  for (int rows = 1; rows <= p.h; ++rows) {
    const DgradShape g = shape_of(p, rows);
    if (rows > 1 && (g.rows * g.w > kFewPixels || smem_bytes<Config>(g) > limit)) break;
    const double cost =
        1.0 * ceil_div(g.tiles, device.multiprocessors * Config::kBlocks) *
        (ceil_div(g.pixels, 16 * kFewWarps) * 16 * kFewWarps + 0.25 * g.images * g.rows * g.w + 96);
    if (rows == 1 || cost < best_cost) best = rows, best_cost = cost;
  }
  return best;
}

template <class Config>
Plan<Conv2dDgrad::Args> plan_for(const Conv2dProblem& p, const Device& device, int rows) {
  const DgradShape g = shape_of(p, rows ? rows : best_rows<Config>(p, device));
  const int bytes = smem_bytes<Config>(g);
  const auto kernel = conv2d_dgrad_few_channels_kernel<Config>;
  // The most there is: the limit is the kernel's, and other plans of it may need more than this one.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.smem_per_block)),
             "conv2d_dgrad_few_channels: shared memory");
  const int blocks = std::min(g.tiles, device.multiprocessors * Config::kBlocks);
  return make_plan<Conv2dDgrad::Args>(0, [=](const Conv2dDgrad::Args& a, void*, Stream stream) {
    kernel<<<blocks, kFewThreads, bytes, cuda_stream(stream)>>>(
        static_cast<const bf16*>(a.dy), static_cast<const bf16*>(a.w), static_cast<bf16*>(a.dx), g);
    check_launch("conv2d_dgrad_few_channels_kernel");
  });
}

// Calls f with the Config of the problem.
template <class F>
auto with_config(const Conv2dProblem& p, const F& f) {
  const int terms = p.r * p.s * p.c;
  if (p.k > 64 || terms > 32) return f(DgradConfig<1, 4, false>());
  if (p.k <= 32) return terms <= 16 ? f(DgradConfig<1, 2, true>()) : f(DgradConfig<1, 4, true>());
  return terms <= 16 ? f(DgradConfig<2, 2, true>()) : f(DgradConfig<2, 4, true>());
}

bool fits(const Conv2dProblem& p, const Device& device, int rows) {
  return with_config(p, [&]<class Config>(Config) {
    return smem_bytes<Config>(shape_of(p, rows)) <= static_cast<int>(device.smem_per_block);
  });
}

Support supports(const Conv2dProblem& p, const Device& device) {
  if (p.dact != ActKind::kNone) return Support::no("it takes no drelu or drelu6");
  if (const Support s = few_supports(p, device); !s) return s;
  return Support::require(fits(p, device, 1), kFewTooWide);
}

}  // namespace

extern const Impl<Conv2dDgrad> conv2d_dgrad_few_channels = {
    .name = "few_channels",
    .supports = supports,
    .plan =
        [](const Conv2dProblem& p, const Device& device, std::string_view config) {
          const int rows = few_config_rows(config);
          if (!fits(p, device, std::max(rows, 1))) {
            fail_usage("conv2d: these rows do not fit into shared memory");
          }
          return with_config(p, [&]<class Config>(Config) { return plan_for<Config>(p, device, rows); });
        },
    .configs =
        [](const Conv2dProblem& p, const Device& device) {
          const int best = with_config(p, [&]<class Config>(Config) { return best_rows<Config>(p, device); });
          return few_configs(best, p.h, [&](int rows) {
            const DgradShape g = shape_of(p, rows);
            return g.images * g.rows * g.w <= kFewPixels && fits(p, device, rows);
          });
        },
    .preferred = few_preferred};

}  // namespace kiln
