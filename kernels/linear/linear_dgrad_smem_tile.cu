// linear dgrad: dx[n,c] = sum_k dy[n,k] * w[k,c].
//
// The tiled product of linear_tile.cuh with rows n, columns c, sum over k; dy is stored along the sum, w
// across it. A block of 128 threads owns 64 x 64 outputs and a chunk of k (all of it unless k is long and
// outputs are few). 17 KiB of shared memory. Any shape (16-byte loads of dy where k, of w where c is a
// multiple of 4), bf16 or fp32 storage, fp32 sums, deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tile.cuh"

namespace kiln {
namespace {

namespace tile = linear_tile;
using Config = tile::WideConfig;

template <class T, class Out>
__global__ __launch_bounds__(Config::kThreads) void linear_dgrad_smem_tile_kernel(
    const T* __restrict__ dy,     // [N,K]
    const T* __restrict__ w,      // [K,C]
    Out* __restrict__ dx,         // [N,C]
    float* __restrict__ partial,  // [splits, partial_stride], used where there is more than one split
    const __grid_constant__ tile::Shape shape) {
  let_next_start();
  __shared__ tile::Memory<Config> memory;
  const tile::Origin at = tile::origin<Config>(shape);
  const auto sums = tile::multiply<Config, true, false, false>(dy, w, shape, at, memory);
  if (shape.splits > 1) {
    tile::store_tile<Config>(partial + blockIdx.y * shape.partial_stride, nullptr, shape, at, sums);
  } else {
    tile::store_tile<Config>(dx, nullptr, shape, at, sums);
  }
}

template <class T, class Out>
Plan<LinearDgrad::Args> plan(const LinearProblem& p, const Device& device) {
  const tile::Shape shape = tile::plan_shape<Config>(p.n, p.c, p.k, p.k, p.c, device);
  const auto launch = [shape, dtype = p.out_dtype()](const LinearDgrad::Args& a, void* workspace,
                                                     Stream stream) {
    auto* partial = static_cast<float*>(workspace);
    linear_dgrad_smem_tile_kernel<T, Out>
        <<<tile::grid<Config>(shape), Config::kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.dy), static_cast<const T*>(a.w), static_cast<Out*>(a.dx), partial, shape);
    check_launch("linear_dgrad_smem_tile_kernel");
    if (shape.splits > 1) linear_sum_splits(partial, shape.split(), nullptr, a.dx, dtype, nullptr, stream);
  };
  return make_plan<LinearDgrad::Args>(shape.split().workspace_bytes(), launch);
}

}  // namespace

extern const Impl<LinearDgrad> linear_dgrad_smem_tile = {
    .name = "smem_tile",
    .supports = [](const LinearProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          if (p.dtype == DType::kF32) return plan<float, float>(p, device);
          return p.f32_out ? plan<bf16, float>(p, device) : plan<bf16, bf16>(p, device);
        }};

}  // namespace kiln
