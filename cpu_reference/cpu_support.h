// What CPU implementations share: typed views of Args pointers and the usual Impl.
#pragma once

#include <algorithm>

#include "kernels/common/dtype.h"
#include "kernels/common/impl.h"

// Compiled for AVX-512, AVX2 and the baseline; the loader picks one for the machine it runs on. For functions
// that hold the inner loops and no OpenMP region (an outlined region would stay at the baseline).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define KILN_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KILN_CPU_CLONES
#endif

namespace kiln {

inline const float* f32(const void* p) { return static_cast<const float*>(p); }
inline float* f32(void* p) { return static_cast<float*>(p); }

// Splits [0, count) over the threads in contiguous ranges (the same split on every run with as many threads)
// and calls body(begin, end) for each.
template <class Body>
void parallel_ranges(long long count, const Body& body) {
  constexpr long long kLeast = 4096;  // below this a thread is not worth waking
  const long long parts = std::max(1LL, std::min<long long>(cpu_device().threads, count / kLeast));
#pragma omp parallel for schedule(static) if (parts > 1)
  for (long long i = 0; i < parts; ++i) body(count * i / parts, count * (i + 1) / parts);
}

template <class Problem>
Support cpu_supports_f32(const Problem& p, const Device&) {
  return Support::require(p.dtype == DType::kF32, "CPU implementations take fp32");
}

// An Impl around `run(problem, args)`, no workspace, no config.
template <class Pass, void (*run)(const typename Pass::Problem&, const typename Pass::Args&)>
constexpr Impl<Pass> cpu_impl(const char* name) {
  using Problem = typename Pass::Problem;
  using Args = typename Pass::Args;
  return {.name = name,
          .supports = cpu_supports_f32<Problem>,
          .plan = [](const Problem& problem, const Device&, std::string_view config) {
            require_no_config(config);
            return make_plan<Args>(0, [problem](const Args& args, void*, Stream) { run(problem, args); });
          }};
}

// The same with a workspace of `bytes(problem)`: `run(problem, args, workspace)`.
template <class Pass, size_t (*bytes)(const typename Pass::Problem&),
          void (*run)(const typename Pass::Problem&, const typename Pass::Args&, void*)>
constexpr Impl<Pass> cpu_impl(const char* name) {
  using Problem = typename Pass::Problem;
  using Args = typename Pass::Args;
  return {.name = name,
          .supports = cpu_supports_f32<Problem>,
          .plan = [](const Problem& problem, const Device&, std::string_view config) {
            require_no_config(config);
            return make_plan<Args>(bytes(problem), [problem](const Args& args, void* workspace, Stream) {
              run(problem, args, workspace);
            });
          }};
}

}  // namespace kiln
