// What the elementwise CUDA implementations share: Forward<Op>, Backward<Op> and Sum name the function of an
// element, elementwise_impl() makes an Impl of a launcher.
#pragma once

#include <cuda_runtime.h>

#include "kernels/activation/activation.h"
#include "kernels/activation/activation_math.h"
#include "kernels/common/check.h"
#include "kernels/common/vec.cuh"

namespace kiln {

// out = of(in...). kExact: nothing is rounded in between (activation_math.h), so float is as good as
// double.
template <class Op>
struct Forward {
  static constexpr bool kExact = Op::kExact;
  template <class F>
  __device__ __forceinline__ static F of(F x) {
    return Op::fwd(x);
  }
};

template <class Op>
struct Backward {
  static constexpr bool kExact = Op::kExact;
  template <class F>
  __device__ __forceinline__ static F of(F dy, F saved) {
    return Op::bwd(dy, saved);
  }
};

struct Sum {
  static constexpr bool kExact = true;
  template <class F>
  __device__ __forceinline__ static F of(F a, F b) {
    return a + b;
  }
};

// Launcher::launch<T>(args, elements, stream) launches a kernel for element type T and checks the launch.
template <class Pass, class Launcher>
constexpr Impl<Pass> elementwise_impl(const char* name) {
  using Problem = typename Pass::Problem;
  using Args = typename Pass::Args;
  return {.name = name,
          .supports = [](const Problem&, const Device&) { return Support::yes(); },
          .plan =
              [](const Problem& p, const Device&, std::string_view config) {
                require_no_config(config);
                const int elements = static_cast<int>(p.elements());
                const bool wide = p.dtype == DType::kF32;
                return make_plan<Args>(0, [elements, wide](const Args& a, void*, Stream stream) {
                  if (wide) {
                    Launcher::template launch<float>(a, elements, cuda_stream(stream));
                  } else {
                    Launcher::template launch<bf16>(a, elements, cuda_stream(stream));
                  }
                });
              }};
}

}  // namespace kiln
