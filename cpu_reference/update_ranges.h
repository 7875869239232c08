// What the CPU implementations of sgd and adamw on all cores share: the slab is cut at the end of the decayed
// parameters and into a range a thread; a range is one flat loop that the compiler vectorises.
#pragma once

#include <algorithm>

#include "cpu_reference/cpu_support.h"
#include "kernels/optimizer/update_rule.h"

namespace kiln {

// Applies the rule to parameters [begin, end). Inlined into one function a rule, which has a clone for each
// vector extension.
template <class Rule>
[[gnu::always_inline]] inline void update_range(const Rule& rule, const float* __restrict__ grad,
                                                float* __restrict__ param,
                                                float* const (&states)[Rule::kStates], bool decays,
                                                long long begin, long long end) {
  float* __restrict__ first = states[0];
  float* __restrict__ last = states[Rule::kStates - 1];
  for (long long i = begin; i < end; ++i) {
    float state[Rule::kStates];
    state[0] = first[i];
    if constexpr (Rule::kStates > 1) state[1] = last[i];
    rule.update(param[i], grad[i], state, decays);
    first[i] = state[0];
    if constexpr (Rule::kStates > 1) last[i] = state[1];
  }
}

// Calls range(decays, begin, end) for parts of the slab, in parallel.
template <class Problem, class Range>
void update_slab(const Problem& p, const Range& range) {
  parallel_ranges(p.n, [&](long long begin, long long end) {
    const long long cut = std::clamp<long long>(p.decayed, begin, end);
    range(true, begin, cut);
    range(false, cut, end);
  });
}

}  // namespace kiln
