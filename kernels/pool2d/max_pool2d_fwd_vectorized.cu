// max_pool2d fwd: y[n,p,q,c] = max over the window of x[n, p*sh+r-ph, q*sw+s-pw, c], arg its position r*S+s,
// a byte or two bits each.
//
// A thread owns V channels of one output pixel: 16 bytes of y where c is a multiple of that, else one
// channel (with arg2 the four of a byte of positions, one after the other). It reads each element of its
// window with one access of V channels and keeps maxima and positions in registers, so that neighbouring
// threads move contiguous memory and every byte of x is read once where windows do not overlap. Windows of
// 2x2 (unpadded) and 3x3 are unrolled: all their loads are in flight together. No shared memory. Needs
// 16-byte aligned tensors (make_plan checks). Deterministic. Mirrors cpu_reference/max_pool2d_naive.cpp.
#include "kernels/common/check.h"
#include "kernels/pool2d/pool2d_window.cuh"

namespace kiln {
namespace {

// The first maximum so far, per channel; a later NaN replaces it, nothing replaces a NaN but a NaN.
template <int V>
struct Best {
  float value[V];
  int position[V];

  __device__ __forceinline__ explicit Best(int first_position) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] = -INFINITY;
      position[j] = first_position;
    }
  }
  template <class T>
  __device__ __forceinline__ void take(const Vec<T, V>& v, int at) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool better = static_cast<int>(v[j] > value[j]) | static_cast<int>(v[j] != v[j]);  // no branch
      value[j] = better ? v[j] : value[j];
      position[j] = better ? at : position[j];
    }
  }
};

// kSide: the side of a square window that is unrolled, 0: any window, one tap at a time. kPadded: a window
// may reach into the padding.
template <class T, int V, int kSide, bool kPadded, PoolArg kArg>
__global__ __launch_bounds__(kPoolThreads) void max_pool2d_fwd_vectorized_kernel(
    const T* __restrict__ x,    // [N,H,W,C]
    T* __restrict__ y,          // [N,P,Q,C]
    uint8_t* __restrict__ arg,  // kArg8: [N,P,Q,C]; kArg2: [N,P,Q,C/4]; else null
    const __grid_constant__ PoolShape g) {
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  if (i >= static_cast<unsigned>(g.elements / V)) return;
  const PoolWindow at = pool_window<V>(i, g);

  // A window of nothing but minus infinity, which is never better, has its first element inside the image as
  // the position.
  Best<V> best(max(0, -at.h) * g.s + max(0, -at.w));
  if constexpr (kSide > 0) {
    Vec<T, V> taps[kSide * kSide];
#pragma unroll
    for (int k = 0; k < kSide * kSide; ++k) {
      taps[k] = load_tap<T, V, kPadded>(x, g, at, k / kSide, k % kSide, -INFINITY);
    }
#pragma unroll
    for (int k = 0; k < kSide * kSide; ++k) best.take(taps[k], k);
  } else {
    for (int r = 0; r < g.r; ++r) {
      for (int s = 0; s < g.s; ++s) {
        best.take(load_tap<T, V, kPadded>(x, g, at, r, s, -INFINITY), r * g.s + s);
      }
    }
  }

  Vec<T, V> out;
#pragma unroll
  for (int j = 0; j < V; ++j) out.set(j, best.value[j]);
  out.store(y + static_cast<size_t>(i) * V);
  if constexpr (kArg == PoolArg::kArg8) {
    Vec<uint8_t, V> position;
#pragma unroll
    for (int j = 0; j < V; ++j) position.v[j] = static_cast<uint8_t>(best.position[j]);
    position.store(arg + static_cast<size_t>(i) * V);
  } else if constexpr (kArg == PoolArg::kArg2) {
    static_assert(V % 4 == 0, "whole bytes");
    Vec<uint8_t, V / 4> four;
#pragma unroll
    for (int j = 0; j < V; j += 4) {
      four.v[j / 4] = static_cast<uint8_t>(best.position[j] | best.position[j + 1] << 2 |
                                           best.position[j + 2] << 4 | best.position[j + 3] << 6);
    }
    four.store(arg + static_cast<size_t>(i) * (V / 4));
  }
}

// arg2 where channels fill no vector: a thread owns a byte of positions.
template <class T>
__global__ __launch_bounds__(kPoolThreads) void max_pool2d_fwd_vectorized_bytes_kernel(
    const T* __restrict__ x,    // [N,H,W,C]
    T* __restrict__ y,          // [N,P,Q,C]
    uint8_t* __restrict__ arg,  // [N,P,Q,ceil(C/4)]
    const __grid_constant__ PoolShape g) {
  const unsigned i = blockIdx.x * kPoolThreads + threadIdx.x;
  const unsigned bytes = static_cast<unsigned>(g.c + 3) / 4, pixel = i / bytes;
  if (pixel >= static_cast<unsigned>(g.elements / g.c)) return;
  const unsigned first = pixel * g.c + (i - pixel * bytes) * 4;  // element of y
  const unsigned end = min(first + 4, (pixel + 1) * g.c);
  int positions = 0;
  for (unsigned element = first; element < end; ++element) {
    const PoolWindow at = pool_window<1>(element, g);
    Best<1> best(max(0, -at.h) * g.s + max(0, -at.w));
    for (int k = 0; k < g.r * g.s; ++k) {
      best.take(load_tap<T, 1, true>(x, g, at, k / g.s, k % g.s, -INFINITY), k);
    }
    y[element] = from_float<T>(best.value[0]);
    positions |= best.position[0] << (2 * (element - first));
  }
  arg[i] = static_cast<uint8_t>(positions);
}

template <class T, int V, int kSide, bool kPadded, PoolArg kArg>
void launch(const MaxPool2dFwd::Args& a, const PoolShape& g, Stream stream) {
  const unsigned blocks = grid_for(g.elements / V, kPoolThreads);
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  uint8_t* arg = static_cast<uint8_t*>(a.arg);
  max_pool2d_fwd_vectorized_kernel<T, V, kSide, kPadded, kArg>
      <<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(x, y, arg, g);
  check_launch("max_pool2d_fwd_vectorized_kernel");
}

template <class T>
void launch_bytes(const MaxPool2dFwd::Args& a, const PoolShape& g, Stream stream) {
  const unsigned blocks = grid_for(1LL * g.elements / g.c * ceil_div(g.c, 4), kPoolThreads);
  max_pool2d_fwd_vectorized_bytes_kernel<T><<<blocks, kPoolThreads, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.x), static_cast<T*>(a.y), static_cast<uint8_t*>(a.arg), g);
  check_launch("max_pool2d_fwd_vectorized_bytes_kernel");
}

using Launch = void (*)(const MaxPool2dFwd::Args&, const PoolShape&, Stream);

template <class T, PoolArg kArg>
Launch launcher(const MaxPool2dProblem& p) {
  constexpr int V = kVec16<T>;
  if (p.c % V == 0) {
    if (p.r == 2 && p.s == 2 && p.pad_h == 0 && p.pad_w == 0) return launch<T, V, 2, false, kArg>;
    if constexpr (kArg != PoolArg::kArg2) {
      if (p.r == 3 && p.s == 3) return launch<T, V, 3, true, kArg>;
    }
    return launch<T, V, 0, true, kArg>;
  }
  if constexpr (kArg == PoolArg::kArg2) {
    return launch_bytes<T>;
  } else {
    return launch<T, 1, 0, true, kArg>;
  }
}

template <class T>
Plan<MaxPool2dFwd::Args> plan(const MaxPool2dProblem& p) {
  const Launch run = p.arg == PoolArg::kArg2   ? launcher<T, PoolArg::kArg2>(p)
                     : p.arg == PoolArg::kArg8 ? launcher<T, PoolArg::kArg8>(p)
                                               : launcher<T, PoolArg::kNone>(p);
  return make_plan<MaxPool2dFwd::Args>(
      0, [run, g = make_pool_shape(p)](const auto& a, void*, Stream stream) { run(a, g, stream); });
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_vectorized = {
    .name = "vectorized",
    .supports = [](const MaxPool2dProblem&, const Device&) { return Support::yes(); },
    .plan =
        [](const MaxPool2dProblem& p, const Device&, std::string_view config) {
          require_no_config(config);
          return p.dtype == DType::kBF16 ? plan<bf16>(p) : plan<float>(p);
        }};

}  // namespace kiln
