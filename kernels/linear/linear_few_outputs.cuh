// Products with few outputs a row, k at most 128, where bytes and latency are the limit: fragments of
// mma.sync come straight from global memory, without shared memory or transposition.
//
// m16n8k16 gives lane (g, t) = (lane / 4, lane % 4) rows g and g+8 of A, column g of B, and of the sum's 16
// indices l the pairs 2t and 2t+8. Two freedoms make its loads 16 bytes. Which l of memory is which l of the
// product is free as long as A and B agree: an operand stored along the sum gives lane t elements 8t..8t+7 of
// 32, two products' worth. Which column of memory is which column of B is free too: an operand stored across
// the sum gives lane g elements V*g..V*g+V-1 of each of its four l, one for each of V products, and a lane's
// results are then 2V neighbouring columns.
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/mma.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_split.h"

namespace kiln {
namespace {

inline Support few_outputs_supports(const LinearProblem& p, const Device&) {
  if (p.dtype != DType::kBF16) return Support::no("dtype must be bf16");
  if (p.k > 128) return Support::no("outputs must be at most 128");
  return Support::require(p.c % 8 == 0, "input features must be a multiple of 8");
}

// Each group of 16 or 32 outputs reads the images again.
inline bool few_outputs_preferred(const LinearProblem& p, const Device&) {
  return p.k <= 32 || p.macs() <= kLinearSmallMacs;
}

// Eight neighbours, or zeros.
struct alignas(16) EightBf16 {
  uint32_t pair[4];
};
__device__ __forceinline__ EightBf16 load_eight(const bf16* p, bool valid) {
  return valid ? *reinterpret_cast<const EightBf16*>(p) : EightBf16{{0, 0, 0, 0}};
}

__device__ __forceinline__ uint32_t pack_pair(bf16 low, bf16 high) {
  const __nv_bfloat162 pair = __halves2bfloat162(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Element i of the four l that a lane holds of a k16 step.
__device__ __forceinline__ int fragment_l(int i) { return threadIdx.x % 4 * 2 + i / 2 * 8 + i % 2; }

// An operand stored across the sum: V columns of the lane's four l of one k16 step.
template <int V>
struct AcrossRows {
  Vec<bf16, V> row[4];

  // p: column V*g of l = 0 of the step, [L, ld]; `depth`: how many l there are from there.
  __device__ __forceinline__ void load(const bf16* p, int ld, int depth, bool valid) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int l = fragment_l(i);
      if (valid && l < depth) {
        row[i] = Vec<bf16, V>::load(p + static_cast<size_t>(l) * ld);
      } else {
#pragma unroll
        for (int e = 0; e < V; ++e) row[i].set(e, 0.0f);
      }
    }
  }
  // B's fragment of product j.
  __device__ __forceinline__ uint32_t low(int j) const { return pack_pair(row[0].v[j], row[1].v[j]); }
  __device__ __forceinline__ uint32_t high(int j) const { return pack_pair(row[2].v[j], row[3].v[j]); }
};

// A's fragment from elements anywhere: `at(row, l)` is the element, `rows` and `depth` what is left of the
// tensor.
template <class At>
__device__ __forceinline__ void load_scattered(uint32_t (&a)[4], int rows, int depth, const At& at) {
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + half * 8;
    bf16 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int l = fragment_l(i);
      v[i] = row < rows && l < depth ? *at(row, l) : from_float<bf16>(0.0f);
    }
    a[half] = pack_pair(v[0], v[1]);
    a[half + 2] = pack_pair(v[2], v[3]);
  }
}

// V neighbours as bf16 or fp32, whichever `out` holds, from element i, a multiple of V.
template <int V>
__device__ __forceinline__ void store_run(void* out, bool f32_out, size_t i, const float (&v)[V]) {
  if (f32_out) {
    constexpr int kWidth = V < 4 ? V : 4;
#pragma unroll
    for (int e = 0; e < V; e += kWidth) {
      Vec<float, kWidth> part;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) part.v[k] = v[e + k];
      part.store(static_cast<float*>(out) + i + e);
    }
  } else {
    Vec<bf16, V> rounded;
#pragma unroll
    for (int e = 0; e < V; ++e) rounded.set(e, v[e]);
    rounded.store(static_cast<bf16*>(out) + i);
  }
}

// A compiled variant: what follows "few_outputs:" in a choice.
template <class Pass>
struct FewOutputsVariant {
  const char* name;
  Plan<typename Pass::Args> (*plan)(const LinearProblem&);
};

// The named variant, or for an empty name `unasked`.
template <class Pass, size_t kCount>
const FewOutputsVariant<Pass>& choose_variant(const FewOutputsVariant<Pass> (&variants)[kCount],
                                              std::string_view name, std::string_view unasked) {
  std::string known;
  for (const auto& variant : variants) {
    if (variant.name == (name.empty() ? unasked : name)) return variant;
    known.append(known.empty() ? "" : ", ").append(variant.name);
  }
  fail_usage("unknown config '" + std::string(name) + "'; known: " + known);
}

template <class Pass, size_t kCount>
std::vector<std::string> variant_names(const FewOutputsVariant<Pass> (&variants)[kCount]) {
  std::vector<std::string> names;
  for (const auto& variant : variants) names.push_back(variant.name);
  return names;
}

}  // namespace
}  // namespace kiln
