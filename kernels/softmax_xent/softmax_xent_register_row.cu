// softmax_xent fwd and fwd_bwd with a row in registers: formulas in softmax_xent.h.
//
// kWarps warps (one, or all of the block) own a row n and hold it as kHeld elements a thread: x is read once,
// in 16-byte vectors that are all under way together, and exp taken once an element. Vector i belongs to
// thread i modulo 32*kWarps. Where K is no whole number of vectors (not kWhole), a row begins up to V - 1
// elements into its first vector; elements of its neighbours are left out, and written back by nobody. The
// gradient is written as if no class were the label; whoever wrote the label's vector then writes that
// element. Losses are summed by block, then by the last block (softmax_xent_finish). Shared memory: below 2
// KiB. Workspace: [blocks,2] fp32. At most 4096 classes. Deterministic. Mirrors
// cpu_reference/softmax_xent_naive.cpp.
#include "kernels/common/grid.h"
#include "kernels/softmax_xent/softmax_xent_row.cuh"

namespace kiln {
namespace {

constexpr int kMostClasses = 4096;

// What a thread has of a row: kHeld elements, in vectors `kThreads` vectors apart.
template <class T, int kWarps, int kHeld, bool kWhole>
struct RowPart {
  static constexpr int V = kVec16<T>, kVectors = kHeld / V, kThreads = 32 * kWarps;
  static_assert(kHeld % V == 0, "a thread holds whole vectors");

  float value[kHeld];
  int thread;   // of the row's
  int classes;  // K
  int offset;   // elements from the first vector's begin to class 0, 0 where kWhole
  int vectors;  // that hold elements of the row

  // The class of element 0 of vector j; below 0 or beyond K in part where not kWhole.
  __device__ __forceinline__ int first_class(int j) const { return (thread + j * kThreads) * V - offset; }
  __device__ __forceinline__ bool has(int j) const { return thread + j * kThreads < vectors; }
  __device__ __forceinline__ bool inside(int k) const {
    return kWhole || static_cast<unsigned>(k) < static_cast<unsigned>(classes);
  }

  // From element `base` of x. Elements that the row does not have are -inf.
  __device__ __forceinline__ void load(const T* __restrict__ x, size_t base, size_t elements) {
    Vec<T, V> held[kVectors];
    const T* begin = x + (base - offset);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int i = 0; i < V; ++i) held[j].set(i, -INFINITY);
      if (!has(j)) continue;
      const size_t at = static_cast<size_t>(thread + j * kThreads) * V;
      if (kWhole || base - offset + at + V <= elements) {
        held[j] = Vec<T, V>::load(begin + at);
      } else {  // the end of x
#pragma unroll
        for (int i = 0; i < V; ++i) {
          if (base - offset + at + i < elements) held[j].v[i] = begin[at + i];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        value[j * V + i] = inside(first_class(j) + i) ? held[j][i] : -INFINITY;
      }
    }
  }
  __device__ __forceinline__ float largest() const {
    float most = -INFINITY;
#pragma unroll
    for (int e = 0; e < kHeld; ++e) most = fmaxf(most, value[e]);
    return most;
  }
  // Whether a class before k has the value `most`.
  __device__ __forceinline__ bool has_before(int k, float most) const {
    bool found = false;
#pragma unroll
    for (int e = 0; e < kHeld; ++e) {
      found = found || (value[e] == most && first_class(e / V) + e % V < k);
    }
    return found;
  }
  // Makes a value z + most its exp(z); the sums of both.
  __device__ __forceinline__ float2 exponentials(float most) {
    float2 sums = {0.0f, 0.0f};  // of exp(z) and z
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (!has(j)) continue;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float z = value[j * V + i] - most;
        value[j * V + i] = softmax_xent_exp<T>(z);
        sums.x += inside(first_class(j) + i) ? value[j * V + i] : 0.0f;
        sums.y += inside(first_class(j) + i) ? z : 0.0f;
      }
    }
    return sums;
  }
  // dx = value * factor - off_target, but `at_label` at class `label`, at element `base` of dx.
  __device__ __forceinline__ void store(T* __restrict__ dx, size_t base, float factor, float off_target,
                                        int label, float at_label) const {
    T* begin = dx + (base - offset);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (!has(j)) continue;
      Vec<T, V> out;
#pragma unroll
      for (int i = 0; i < V; ++i) out.set(i, fmaf(value[j * V + i], factor, -off_target));
      T* to = begin + static_cast<size_t>(thread + j * kThreads) * V;
      const int k = first_class(j);
      if (kWhole || (k >= 0 && k + V <= classes)) {
        out.store(to);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          if (inside(k + i)) to[i] = out.v[i];
        }
      }
    }
    if (static_cast<unsigned>(label) < static_cast<unsigned>(classes) &&
        (label + offset) / V % kThreads == thread) {
      dx[base + label] = from_float<T>(at_label);
    }
  }
};

// The largest value and the sums over the threads of a row; every thread gets them. `scratch`: an element a
// warp of shared memory. The two calls of a row use two of them, so that the barrier in one keeps the next
// row's writes to the other from the reads before.
template <int kWarps>
__device__ __forceinline__ float row_max(float v, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) v = fmaxf(v, scratch[w]);
  }
  return v;
}

template <int kWarps>
__device__ __forceinline__ float2 row_sums(float2 v, bool& any, float4* scratch) {
  v = {warp_sum(v.x), warp_sum(v.y)};
  any = __any_sync(0xffffffffu, any);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = {v.x, v.y, any ? 1.0f : 0.0f, 0.0f};
    __syncthreads();
    float4 all = scratch[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      all = {all.x + scratch[w].x, all.y + scratch[w].y, all.z + scratch[w].z, 0.0f};
    }
    v = {all.x, all.y};
    any = all.z > 0.0f;
  }
  return v;
}

template <int kWarps>
constexpr int kBlockThreads = kWarps == 1 ? 256 : 32 * kWarps;
// Of a multiprocessor, that registers must be there for.
template <int kWarps, bool kWhole>
constexpr int kLeastBlocks = kWarps > 1 || kWhole ? 4 : 2;

template <class T, int kWarps, int kHeld, bool kWhole, bool kGradient>
__global__
__launch_bounds__(kBlockThreads<kWarps>, kLeastBlocks<kWarps, kWhole>) void softmax_xent_register_row_kernel(
    const T* __restrict__ x,         // [N,K]
    const int* __restrict__ labels,  // [N]
    float* __restrict__ row_loss,    // [N]
    float* __restrict__ summary,     // [2]
    T* __restrict__ dx,              // [N,K], unused without kGradient
    float* __restrict__ partial,     // [blocks,2]
    unsigned* __restrict__ done,     // [1]
    int rows, int classes, const __grid_constant__ SoftmaxXentScale scale) {
  using Part = RowPart<T, kWarps, kHeld, kWhole>;
  constexpr int kThreads = Part::kThreads, kRows = kBlockThreads<kWarps> / kThreads;
  __shared__ float s_max[kWarps];
  __shared__ float4 s_sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int row = static_cast<int>(threadIdx.x) / kThreads;
  float loss_sum = 0.0f, correct_sum = 0.0f;  // of the rows whose thread 0 this is
  for (long long n = 1LL * blockIdx.x * kRows + row; n < rows; n += 1LL * gridDim.x * kRows) {
    const size_t base = static_cast<size_t>(n) * classes;
    const int label = labels[n];
    const int offset = kWhole ? 0 : static_cast<int>(base % Part::V);
    Part part{.thread = thread,
              .classes = classes,
              .offset = offset,
              .vectors = (offset + classes + Part::V - 1) / Part::V};
    part.load(x, base, static_cast<size_t>(rows) * classes);
    const bool valid = static_cast<unsigned>(label) < static_cast<unsigned>(classes);
    const float x_label = valid ? to_float(x[base + label]) : __int_as_float(0x7fc00000);
    const float most = row_max<kWarps>(part.largest(), s_max);
    bool earlier = x_label == most && part.has_before(label, most);
    const float2 sums = row_sums<kWarps>(part.exponentials(most), earlier, s_sums);
    if constexpr (kGradient) {
      const float inverse = valid ? 1.0f / sums.x : x_label;  // a wrong label makes the whole row NaN
      const float softmax = softmax_xent_exp<T>(x_label - most) * inverse;
      part.store(dx, base, inverse * scale.inverse_rows, scale.off_target * scale.inverse_rows, label,
                 softmax_xent_gradient(softmax, true, scale));
    }
    if (thread == 0) {
      const float loss = softmax_xent_loss(sums.x, sums.y, x_label - most, classes, scale);
      row_loss[n] = loss;
      loss_sum += loss;
      correct_sum += x_label == most && !earlier && !isnan(loss) ? 1.0f : 0.0f;
    }
  }
  softmax_xent_finish(loss_sum, correct_sum, kBlockThreads<kWarps> / 32, scale, partial, done, summary);
}

template <class T>
bool whole_vectors(const SoftmaxXentProblem& p) {
  return p.c % kVec16<T> == 0;
}

// The elements that a row's vectors may span.
template <class T>
int span(const SoftmaxXentProblem& p) {
  return p.c + (whole_vectors<T>(p) ? 0 : kVec16<T> - 1);
}

Support supports(const SoftmaxXentProblem& p, const Device&) {
  return Support::require((p.dtype == DType::kBF16 ? span<bf16>(p) : span<float>(p)) <= kMostClasses,
                          "register_row takes at most 4096 classes, less a vector where rows are no whole "
                          "number of 16-byte vectors");
}

// Blocks of 256 threads a multiprocessor, at most: b4 are there together, b8 and b16 come after each other.
constexpr int kBlocks[] = {8, 4, 16};

std::vector<std::string> configs(const SoftmaxXentProblem&, const Device&) {
  std::vector<std::string> names;
  for (const int blocks : kBlocks) names.push_back(std::string("b").append(std::to_string(blocks)));
  return names;
}

int choose(const SoftmaxXentProblem& p, const Device& device, std::string_view name) {
  if (name.empty()) return kBlocks[0];
  const std::vector<std::string> names = configs(p, device);
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return kBlocks[i];
  }
  fail_usage("unknown config '" + std::string(name) + "'; known: b8, b4, b16");
}

template <class T, int kWarps, int kHeld, bool kWhole, bool kGradient, class Args>
Plan<Args> make(const SoftmaxXentProblem& p, long long most) {
  constexpr int kThreads = kBlockThreads<kWarps>;
  const int blocks = static_cast<int>(grid_for(p.n, kThreads / (32 * kWarps), most * (256 / kThreads)));
  return softmax_xent_plan<Args>(blocks, [=](const Args& a, float* partial, unsigned* done, Stream stream) {
    T* dx = nullptr;
    if constexpr (kGradient) dx = static_cast<T*>(a.dx);
    softmax_xent_register_row_kernel<T, kWarps, kHeld, kWhole, kGradient>
        <<<blocks, kThreads, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const int*>(a.labels), static_cast<float*>(a.row_loss),
            static_cast<float*>(a.summary), dx, partial, done, p.n, p.c, softmax_xent_scale(p));
    check_launch("softmax_xent_register_row_kernel");
  });
}

template <class T, bool kWhole, bool kGradient, class Args>
Plan<Args> make_for(const SoftmaxXentProblem& p, long long most) {
  const int elements = span<T>(p);
  return elements <= 8 * 32    ? make<T, 1, 8, kWhole, kGradient, Args>(p, most)
         : elements <= 32 * 32 ? make<T, 1, 32, kWhole, kGradient, Args>(p, most)
                               : make<T, 4, 32, kWhole, kGradient, Args>(p, most);
}

template <class Pass, class T>
Plan<typename Pass::Args> plan_typed(const SoftmaxXentProblem& p, long long most) {
  using Args = typename Pass::Args;
  constexpr bool kGradient = requires(Args a) { a.dx; };
  return whole_vectors<T>(p) ? make_for<T, true, kGradient, Args>(p, most)
                             : make_for<T, false, kGradient, Args>(p, most);
}

template <class Pass>
Plan<typename Pass::Args> plan(const SoftmaxXentProblem& p, const Device& device, std::string_view config) {
  const long long most = 1LL * choose(p, device, config) * std::max(1, device.multiprocessors);
  return p.dtype == DType::kBF16 ? plan_typed<Pass, bf16>(p, most) : plan_typed<Pass, float>(p, most);
}

}  // namespace

extern const Impl<SoftmaxXentFwd> softmax_xent_fwd_register_row = {
    .name = "register_row", .supports = supports, .plan = plan<SoftmaxXentFwd>, .configs = configs};

extern const Impl<SoftmaxXentFwdBwd> softmax_xent_fwd_bwd_register_row = {
    .name = "register_row", .supports = supports, .plan = plan<SoftmaxXentFwdBwd>, .configs = configs};

}  // namespace kiln
