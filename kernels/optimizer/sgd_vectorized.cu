// sgd: g' = g + wd * w (first `decayed` parameters), v = momentum * v + g', w -= lr * (nesterov ? g' +
// momentum * v : v), and the working copy is w rounded to its type.
//
// A thread owns four neighbours: 16-byte loads of grad, param and velocity, 16-byte stores of the last two, 8
// bytes of bf16 copy. The last parameters that fill no vector go to the first threads one by one. lr and the
// finite flag are read from StepState in device memory; where finite is 0 nothing is written. No shared
// memory, any n, tensors 16-byte aligned (make_plan checks), fp32 arithmetic, deterministic. Mirrors
// cpu_reference/sgd_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/optimizer/optimizer.h"

namespace kiln {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;

struct Rule {
  float momentum, weight_decay;
  float of_gradient, of_velocity;  // the step's direction: 0 and 1, with Nesterov 1 and momentum
  int decayed;
};

__device__ __forceinline__ void update(const Rule& rule, float lr, int i, float g, float& w, float& v) {
  g = fmaf(i < rule.decayed ? rule.weight_decay : 0.0f, w, g);
  v = fmaf(rule.momentum, v, g);
  w = fmaf(-lr, fmaf(rule.of_gradient, g, rule.of_velocity * v), w);
}

template <bool kCopy>
__global__ __launch_bounds__(kThreads) void sgd_step_vectorized_kernel(
    const StepState* __restrict__ step,  // [1]
    const float* __restrict__ grad,      // [n]
    float* __restrict__ param,           // [n]
    float* __restrict__ velocity,        // [n]
    bf16* __restrict__ copy,             // [n], unused without kCopy
    int n, const __grid_constant__ Rule rule) {
  if (!step->finite) return;
  const float lr = step->lr;
  const int thread = blockIdx.x * kThreads + threadIdx.x;
  const int vectors = n / kVector;
  if (thread < vectors) {
    const int first = thread * kVector;
    const auto g = Vec<float, kVector>::load(grad + first);
    auto w = Vec<float, kVector>::load(param + first);
    auto v = Vec<float, kVector>::load(velocity + first);
    Vec<bf16, kVector> rounded;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      update(rule, lr, first + j, g.v[j], w.v[j], v.v[j]);
      if constexpr (kCopy) rounded.set(j, w.v[j]);
    }
    w.store(param + first);
    v.store(velocity + first);
    if constexpr (kCopy) rounded.store(copy + first);
  }
  const int tail = n - vectors * kVector;
  if (thread < tail) {
    const int i = vectors * kVector + thread;
    float w = param[i], v = velocity[i];
    update(rule, lr, i, grad[i], w, v);
    param[i] = w;
    velocity[i] = v;
    if constexpr (kCopy) copy[i] = from_float<bf16>(w);
  }
}

template <bool kCopy>
Plan<SgdStep::Args> plan(const SgdProblem& p) {
  const int n = static_cast<int>(p.n);
  const Rule rule = {.momentum = p.momentum,
                     .weight_decay = p.weight_decay,
                     .of_gradient = p.nesterov ? 1.0f : 0.0f,
                     .of_velocity = p.nesterov ? p.momentum : 1.0f,
                     .decayed = static_cast<int>(p.decayed)};
  return make_plan<SgdStep::Args>(0, [n, rule](const SgdStep::Args& a, void*, Stream stream) {
    sgd_step_vectorized_kernel<kCopy><<<grid_for(n, kThreads * kVector), kThreads, 0, cuda_stream(stream)>>>(
        static_cast<const StepState*>(a.step), static_cast<const float*>(a.grad),
        static_cast<float*>(a.param), static_cast<float*>(a.velocity), static_cast<bf16*>(a.copy), n, rule);
    check_launch("sgd_step_vectorized_kernel");
  });
}

}  // namespace

extern const Impl<SgdStep> sgd_step_vectorized = {
    .name = "vectorized",
    .supports = [](const SgdProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const SgdProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<true>(p) : plan<false>(p);
        }};

}  // namespace kiln
