// The kernels of sgd.step and adamw.step, written once over an update rule (update_rule.h), and their plans.
//
// Both read lr, the step number and the finite flag from StepState in device memory; where finite is 0
// nothing is written. A block's first thread makes the rule (adamw's bias corrections take tens of double
// operations) and hands it on through shared memory (36 or 72 bytes). Any n, deterministic.
#pragma once

#include "kernels/common/check.h"
#include "kernels/common/grid.h"
#include "kernels/common/vec.cuh"
#include "kernels/optimizer/update_rule.h"

namespace kiln {

constexpr int kStepThreads = 256;
constexpr int kStepVector = 4;  // parameters a thread of the vectorised kernel

// naive: a thread owns one parameter, computes in double and loops with the grid's stride.
template <class Rule>
__global__ __launch_bounds__(kStepThreads) void step_naive_kernel(
    const StepState* __restrict__ step,  // [1]
    const float* __restrict__ grad,      // [n]
    const float* __restrict__ norm,      // [1] or null
    float* __restrict__ param,           // [n]
    float* __restrict__ first_state,     // [n]
    float* __restrict__ second_state,    // [n], null where the rule has one state
    bf16* __restrict__ copy,             // [n] or null
    const __grid_constant__ typename Rule::Step::Problem p) {
  __shared__ Rule rule;
  if (!step->finite) return;
  if (threadIdx.x == 0) rule = Rule::make(p, *step, norm);
  __syncthreads();  // the rule is made
  const long long stride = static_cast<long long>(gridDim.x) * kStepThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kStepThreads + threadIdx.x; i < p.n; i += stride) {
    double w = param[i], state[Rule::kStates];
    state[0] = first_state[i];
    if constexpr (Rule::kStates > 1) state[1] = second_state[i];
    rule.update(w, static_cast<double>(grad[i]), state, i < p.decayed);
    const float updated = static_cast<float>(w);
    param[i] = updated;
    first_state[i] = static_cast<float>(state[0]);
    if constexpr (Rule::kStates > 1) second_state[i] = static_cast<float>(state[1]);
    if (copy) copy[i] = from_float<bf16>(updated);
  }
}

// vectorized: a thread owns four neighbours: 16-byte loads of grad, param and states, 16-byte stores of the
// last two, 8 bytes of bf16 copy. All its loads are in flight before the rule is waited for. The last
// parameters that fill no vector go to the first threads one by one. fp32 arithmetic; tensors 16-byte aligned
// (make_plan checks).
template <class Rule, bool kCopy>
__global__ __launch_bounds__(kStepThreads) void step_vectorized_kernel(
    const StepState* __restrict__ step,  // [1]
    const float* __restrict__ grad,      // [n]
    const float* __restrict__ norm,      // [1] or null
    float* __restrict__ param,           // [n]
    float* __restrict__ first_state,     // [n]
    float* __restrict__ second_state,    // [n], null where the rule has one state
    bf16* __restrict__ copy,             // [n], unused without kCopy
    const __grid_constant__ typename Rule::Step::Problem p) {
  __shared__ Rule rule;
  float* const states[2] = {first_state, second_state};
  const int n = static_cast<int>(p.n), decayed = static_cast<int>(p.decayed);
  const int thread = blockIdx.x * kStepThreads + threadIdx.x;
  const int vectors = n / kStepVector;
  const bool whole = thread < vectors;
  const int first = whole ? thread * kStepVector : 0;
  Vec<float, kStepVector> g = {}, w = {}, state[Rule::kStates] = {};
  if (whole) {
    g = Vec<float, kStepVector>::load(grad + first);
    w = Vec<float, kStepVector>::load(param + first);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = Vec<float, kStepVector>::load(states[k] + first);
  }
  if (!step->finite) return;
  if (threadIdx.x == 0) rule = Rule::make(p, *step, norm);
  __syncthreads();  // the rule is made

  float values[Rule::kStates];
  if (whole) {
    Vec<bf16, kStepVector> rounded;
#pragma unroll
    for (int j = 0; j < kStepVector; ++j) {
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) values[k] = state[k].v[j];
      rule.update(w.v[j], g.v[j], values, first + j < decayed);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) state[k].v[j] = values[k];
      if constexpr (kCopy) rounded.set(j, w.v[j]);
    }
    w.store(param + first);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k].store(states[k] + first);
    if constexpr (kCopy) rounded.store(copy + first);
  }
  if (thread < n - vectors * kStepVector) {
    const int i = vectors * kStepVector + thread;
    float last = param[i];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) values[k] = states[k][i];
    rule.update(last, grad[i], values, i < decayed);
    param[i] = last;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) states[k][i] = values[k];
    if constexpr (kCopy) copy[i] = from_float<bf16>(last);
  }
}

inline float* first_state(const SgdStep::Args& a) { return static_cast<float*>(a.velocity); }
inline float* second_state(const SgdStep::Args&) { return nullptr; }
inline float* first_state(const AdamwStep::Args& a) { return static_cast<float*>(a.first_moment); }
inline float* second_state(const AdamwStep::Args& a) { return static_cast<float*>(a.second_moment); }

// Launches either kernel; `name` for error messages.
template <class Step, class Kernel>
Plan<typename Step::Args> plan_step(Kernel kernel, unsigned blocks, const char* name,
                                    const typename Step::Problem& p) {
  using Args = typename Step::Args;
  return make_plan<Args>(0, [=](const Args& a, void*, Stream stream) {
    kernel<<<blocks, kStepThreads, 0, cuda_stream(stream)>>>(
        static_cast<const StepState*>(a.step), static_cast<const float*>(a.grad),
        static_cast<const float*>(a.norm), static_cast<float*>(a.param), first_state(a), second_state(a),
        static_cast<bf16*>(a.copy), p);
    check_launch(name);
  });
}

template <template <class> class Rule, class Problem>
auto plan_step_naive(const Problem& p, const char* name) {
  const unsigned blocks = grid_for(p.n, kStepThreads, 1 << 16);
  return plan_step<typename Rule<double>::Step>(step_naive_kernel<Rule<double>>, blocks, name, p);
}

template <template <class> class Rule, class Problem>
auto plan_step_vectorized(const Problem& p, const char* name) {
  using Step = typename Rule<float>::Step;
  const unsigned blocks = grid_for(p.n, kStepThreads * kStepVector);
  return p.dtype == DType::kBF16
             ? plan_step<Step>(step_vectorized_kernel<Rule<float>, true>, blocks, name, p)
             : plan_step<Step>(step_vectorized_kernel<Rule<float>, false>, blocks, name, p);
}

}  // namespace kiln
