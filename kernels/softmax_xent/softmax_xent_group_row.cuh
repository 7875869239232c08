// softmax_xent fwd and fwd_bwd with a group of threads a row: formulas in softmax_xent.h.
//
// A group of kGroup threads (a warp, or the whole block) owns a row n and takes the classes k with its
// stride, in three sweeps (maximum, sums, gradient) of which the later ones find the row in L1; a block holds
// kGroupRowThreads / kGroup groups and loops over the rows with the grid's stride. Losses are summed by
// block, then by the last block (softmax_xent_finish). Shared memory: below 1 KiB. Workspace: [blocks,2]
// fp32. Any number of classes and any alignment. Deterministic. Mirrors
// cpu_reference/softmax_xent_naive.cpp.
#pragma once

#include <climits>

#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {
namespace {

constexpr int kGroupRowThreads = 256;
constexpr int kGroupRowBlocks = 4;  // a multiprocessor

// A value and where it first occurs.
struct First {
  float value;
  int index;
};
__device__ __forceinline__ First first_largest(First a, First b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

// Reductions over a group; every thread gets the result. `scratch`: one element a warp of shared memory.
template <int kGroup>
__device__ __forceinline__ First group_first_largest(First v, First* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    v = first_largest(
        v, {__shfl_xor_sync(0xffffffffu, v.value, offset), __shfl_xor_sync(0xffffffffu, v.index, offset)});
  }
  if constexpr (kGroup > 32) {
    __syncthreads();  // the row before has been read
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int w = 1; w < kGroup / 32; ++w) v = first_largest(v, scratch[w]);
  }
  return v;
}

template <int kGroup>
__device__ __forceinline__ float2 group_sum(float2 v, float2* scratch) {
  v = {warp_sum(v.x), warp_sum(v.y)};
  if constexpr (kGroup > 32) {
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int w = 1; w < kGroup / 32; ++w) v = {v.x + scratch[w].x, v.y + scratch[w].y};
  }
  return v;
}

template <class T, int kGroup, bool kGradient>
__global__ __launch_bounds__(kGroupRowThreads, kGroupRowBlocks) void softmax_xent_group_row_kernel(
    const T* __restrict__ x,         // [N,K]
    const int* __restrict__ labels,  // [N]
    float* __restrict__ row_loss,    // [N]
    float* __restrict__ summary,     // [2]
    T* __restrict__ dx,              // [N,K], unused without kGradient
    float* __restrict__ partial,     // [blocks,2]
    unsigned* __restrict__ done,     // [1]
    int rows, int classes, const __grid_constant__ SoftmaxXentScale scale) {
  static_assert(kGroup == 32 || kGroup == kGroupRowThreads, "a group is a warp or the block");
  constexpr int kGroups = kGroupRowThreads / kGroup;
  constexpr int kWarps = kGroupRowThreads / 32;
  __shared__ First s_first[kWarps];
  __shared__ float2 s_sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kGroup, group = static_cast<int>(threadIdx.x) / kGroup;
  float loss_sum = 0.0f, correct_sum = 0.0f;  // of the group's rows, in its lane 0
  for (long long n = static_cast<long long>(blockIdx.x) * kGroups + group; n < rows;
       n += gridDim.x * kGroups) {
    const T* row = x + n * classes;
    const int label = labels[n];
    const bool valid = static_cast<unsigned>(label) < static_cast<unsigned>(classes);
    First best = {-INFINITY, INT_MAX};
    for (int k = lane; k < classes; k += kGroup) {
      const float v = to_float(row[k]);
      if (v > best.value) best = {v, k};
    }
    best = group_first_largest<kGroup>(best, s_first);
    float2 sums = {0.0f, 0.0f};  // of exp(z) and z
    for (int k = lane; k < classes; k += kGroup) {
      const float z = to_float(row[k]) - best.value;
      sums.x += expf(z);
      sums.y += z;
    }
    sums = group_sum<kGroup>(sums, s_sums);
    if (lane == 0) {
      const float z_label = valid ? to_float(row[label]) - best.value : __int_as_float(0x7fc00000);
      const float loss = softmax_xent_loss(sums.x, sums.y, z_label, classes, scale);
      row_loss[n] = loss;
      loss_sum += loss;
      correct_sum += best.index == label && !isnan(loss) ? 1.0f : 0.0f;
    }
    if constexpr (kGradient) {
      const float inverse = valid ? 1.0f / sums.x : __int_as_float(0x7fc00000);
      for (int k = lane; k < classes; k += kGroup) {
        const float softmax = expf(to_float(row[k]) - best.value) * inverse;
        dx[n * classes + k] = from_float<T>(softmax_xent_gradient(softmax, k == label, scale));
      }
    }
  }
  softmax_xent_finish(loss_sum, correct_sum, kWarps, scale, partial, done, summary);
}

template <class T, int kGroup, bool kGradient, class Args>
Plan<Args> group_row_plan(const SoftmaxXentProblem& p, const Device& device) {
  const int blocks = static_cast<int>(
      grid_for(p.n, kGroupRowThreads / kGroup, 1LL * kGroupRowBlocks * std::max(1, device.multiprocessors)));
  return softmax_xent_plan<Args>(blocks, [=](const Args& a, float* partial, unsigned* done, Stream stream) {
    T* dx = nullptr;
    if constexpr (kGradient) dx = static_cast<T*>(a.dx);
    softmax_xent_group_row_kernel<T, kGroup, kGradient><<<blocks, kGroupRowThreads, 0, cuda_stream(stream)>>>(
        static_cast<const T*>(a.x), static_cast<const int*>(a.labels), static_cast<float*>(a.row_loss),
        static_cast<float*>(a.summary), dx, partial, done, p.n, p.c, softmax_xent_scale(p));
    check_launch("softmax_xent_group_row_kernel");
  });
}

// The plan of an Impl: kGroup threads a row.
template <class Pass, int kGroup>
Plan<typename Pass::Args> plan_group_row(const SoftmaxXentProblem& p, const Device& device,
                                         std::string_view config) {
  require_no_config(config);
  using Args = typename Pass::Args;
  constexpr bool kGradient = requires(Args a) { a.dx; };
  return p.dtype == DType::kBF16 ? group_row_plan<bf16, kGroup, kGradient, Args>(p, device)
                                 : group_row_plan<float, kGroup, kGradient, Args>(p, device);
}

}  // namespace
}  // namespace kiln
