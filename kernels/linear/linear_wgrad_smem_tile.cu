// linear wgrad: dw[k,c] = sum_n dy[n,k] * x[n,c], dbias[k] = sum_n dy[n,k].
//
// The tiled product of linear_tile.cuh with rows k, columns c, sum over n; both operands are stored across
// the sum. A block of 128 threads owns 64 x 64 outputs, or 16 x 64 where k is at most 16, and a chunk of n;
// the blocks of the first columns also add up dy, which they hold anyway, for dbias. 17 or 22 KiB of shared
// memory. Any shape (16-byte loads of dy where k, of x where c is a multiple of 4), bf16 or fp32 storage,
// fp32 sums and outputs, deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tile.cuh"

namespace kiln {
namespace {

namespace tile = linear_tile;

template <class Config, class T>
__global__ __launch_bounds__(Config::kThreads) void linear_wgrad_smem_tile_kernel(
    const T* __restrict__ dy,     // [N,K]
    const T* __restrict__ x,      // [N,C]
    float* __restrict__ dw,       // [K,C]
    float* __restrict__ dbias,    // [K] or null
    float* __restrict__ partial,  // [splits, partial_stride], used where there is more than one split
    const __grid_constant__ tile::Shape shape) {
  let_next_start();
  __shared__ tile::Memory<Config> memory;
  const tile::Origin at = tile::origin<Config>(shape);
  const auto sums = tile::multiply<Config, false, false, true>(dy, x, shape, at, memory);
  float* products = dw;
  float* row_sums = dbias;
  if (shape.splits > 1) {
    products = partial + blockIdx.y * shape.partial_stride;
    row_sums = products + static_cast<size_t>(shape.m) * shape.n;
  }
  tile::store_tile<Config>(products, nullptr, shape, at, sums);
  if (dbias) tile::store_row_sums<Config>(row_sums, shape, at, sums);
}

template <class Config, class T>
Plan<LinearWgrad::Args> plan(const LinearProblem& p, const Device& device) {
  const tile::Shape shape = tile::plan_shape<Config>(p.k, p.c, p.n, p.k, p.c, device);
  const auto launch = [shape](const LinearWgrad::Args& a, void* workspace, Stream stream) {
    auto* dbias = static_cast<float*>(a.dbias);
    auto* partial = static_cast<float*>(workspace);
    linear_wgrad_smem_tile_kernel<Config, T>
        <<<tile::grid<Config>(shape), Config::kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const T*>(a.x), static_cast<float*>(a.dw), dbias,
            partial, shape);
    check_launch("linear_wgrad_smem_tile_kernel");
    if (shape.splits > 1)
      linear_sum_splits(partial, shape.split(), nullptr, a.dw, DType::kF32, dbias, stream);
  };
  return make_plan<LinearWgrad::Args>(shape.split().workspace_bytes(), launch);
}

template <class T>
Plan<LinearWgrad::Args> plan_for_width(const LinearProblem& p, const Device& device) {
  return p.k <= tile::kFew ? plan<tile::FewRowsConfig, T>(p, device) : plan<tile::WideConfig, T>(p, device);
}

}  // namespace

extern const Impl<LinearWgrad> linear_wgrad_smem_tile = {
    .name = "smem_tile",
    .supports = [](const LinearProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan_for_width<bf16>(p, device) : plan_for_width<float>(p, device);
        }};

}  // namespace kiln
