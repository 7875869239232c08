// linear fwd: y[n,k] = bias[k] + sum_c x[n,c] * w[k,c].
//
// The tiled product of linear_tile.cuh with rows n, columns k, sum over c; both operands are stored along the
// sum. A block of 128 threads owns 64 x 64 outputs, or 64 x 16 where k is at most 16, and a chunk of c; bias
// is added with the last sum. 17 or 22 KiB of shared memory. Any shape (16-byte loads where c is a multiple
// of 4), bf16 or fp32 storage, fp32 sums, deterministic. Mirrors cpu_reference/linear_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/early_launch.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tile.cuh"

namespace kiln {
namespace {

namespace tile = linear_tile;

template <class Config, class T, class Out>
__global__ __launch_bounds__(Config::kThreads) void linear_fwd_smem_tile_kernel(
    const T* __restrict__ x,         // [N,C]
    const T* __restrict__ w,         // [K,C]
    const float* __restrict__ bias,  // [K] or null
    Out* __restrict__ y,             // [N,K]
    float* __restrict__ partial,     // [splits, partial_stride], used where there is more than one split
    const __grid_constant__ tile::Shape shape) {
  let_next_start();
  __shared__ tile::Memory<Config> memory;
  const tile::Origin at = tile::origin<Config>(shape);
  const auto sums = tile::multiply<Config, true, true, false>(x, w, shape, at, memory);
  if (shape.splits > 1) {
    tile::store_tile<Config>(partial + blockIdx.y * shape.partial_stride, nullptr, shape, at, sums);
  } else {
    tile::store_tile<Config>(y, bias, shape, at, sums);
  }
}

template <class Config, class T, class Out>
Plan<LinearFwd::Args> plan(const LinearProblem& p, const Device& device) {
  const tile::Shape shape = tile::plan_shape<Config>(p.n, p.k, p.c, p.c, p.c, device);
  const auto launch = [shape, dtype = p.out_dtype()](const LinearFwd::Args& a, void* workspace,
                                                     Stream stream) {
    const auto* bias = static_cast<const float*>(a.bias);
    auto* partial = static_cast<float*>(workspace);
    linear_fwd_smem_tile_kernel<Config, T, Out>
        <<<tile::grid<Config>(shape), Config::kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const T*>(a.w), bias, static_cast<Out*>(a.y), partial,
            shape);
    check_launch("linear_fwd_smem_tile_kernel");
    if (shape.splits > 1) linear_sum_splits(partial, shape.split(), bias, a.y, dtype, nullptr, stream);
  };
  return make_plan<LinearFwd::Args>(shape.split().workspace_bytes(), launch);
}

template <class T, class Out>
Plan<LinearFwd::Args> plan_for_width(const LinearProblem& p, const Device& device) {
  return p.k <= tile::kFew ? plan<tile::FewColumnsConfig, T, Out>(p, device)
                           : plan<tile::WideConfig, T, Out>(p, device);
}

}  // namespace

extern const Impl<LinearFwd> linear_fwd_smem_tile = {
    .name = "smem_tile",
    .supports = [](const LinearProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const LinearProblem& p, const Device& device, std::string_view config) {
          require_no_config(config);
          if (p.dtype == DType::kF32) return plan_for_width<float, float>(p, device);
          return p.f32_out ? plan_for_width<bf16, float>(p, device) : plan_for_width<bf16, bf16>(p, device);
        }};

}  // namespace kiln
