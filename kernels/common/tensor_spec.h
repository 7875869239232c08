// What a pass reads and writes: one TensorSpec an argument, in the order of the pass's Args. Tests,
// benchmarks and `kiln op` are written once against these.
#pragma once

#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"

namespace kiln {

enum class Role {
  kIn,      // read only
  kOut,     // written whole, never read
  kInOut,   // read and written (running statistics, parameters, `+=` outputs)
  kAbsent,  // not part of this problem: its pointer is null
};

// How a test or benchmark fills an input.
enum class Fill {
  kReal,      // normal(0, 1); in exact mode small integers
  kWide,      // normal(0, 4); in exact mode integers up to 9: reaches past relu6's bounds
  kPositive,  // uniform [0.5, 1.5]; in exact mode 1 or 2 (batchnorm gamma, variances)
  kLabels,    // int32 in [0, limit)
  kBytes,     // uint8 0..255
  kDerived,   // filled by the pass's derive() from the others (saved statistics, argmax, step state)
};

// The judge's bound for an output (see tolerance.h).
enum class Check {
  kSum,       // a sum of `terms` products: exact (tolerance 0) on small-integer data, bounded on real data
  kExact,     // selection or copy: bit-equal to the reference after rounding to the output type, always
  kReal,      // bounded always (roots, exponentials); `terms` is the reduction length
  kPosition,  // positions of maxima of sums (uint8): bit-equal on small-integer data (its integers are then
              // small enough for bf16); on real data another value may be the larger within rounding: see
              // tolerance.h
  kMask,  // one bit a channel of the run's own output "y", bit c%8 of byte c/8: 0 < y, and y < `limit` where
          // that is not 0; unused bits are 0. Exact, where y itself is only bounded
  kOwn,   // bytes: what the pass's positions() makes of the inputs and the run's own other outputs. Exact,
          // where those are only bounded
  kMean,  // the mean of each channel of the run's own output "y", bounded as kReal
  kVariance,  // the biased variance of the same
};

struct TensorSpec {
  std::string name;            // "x", "dw", "saved_mean"
  std::vector<int64_t> shape;  // {} for an absent tensor
  DType dtype = DType::kF32;
  Role role = Role::kIn;
  Fill fill = Fill::kReal;
  int64_t limit = 0;  // kLabels: number of classes; kMask: what y stays below
  Check check = Check::kSum;
  double terms = 1;      // reduction length behind one output element
  double magnitude = 1;  // typical |partial sum term| relative to the output's scale, for kSum and kReal

  int64_t elements() const {
    if (role == Role::kAbsent) return 0;
    return std::accumulate(shape.begin(), shape.end(), int64_t{1},
                           [](int64_t a, int64_t b) { return a * b; });
  }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  bool is_input() const { return role == Role::kIn || role == Role::kInOut; }
  bool is_output() const { return role == Role::kOut || role == Role::kInOut; }
};

// A tensor in host memory.
struct HostTensor {
  TensorSpec spec;
  std::vector<unsigned char> data;

  explicit HostTensor(TensorSpec s) : spec(std::move(s)), data(spec.bytes()) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data.data());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data.data());
  }
  // Pointer for Args: null where the tensor is absent.
  void* pointer() { return spec.role == Role::kAbsent ? nullptr : data.data(); }
};
using HostTensors = std::vector<HostTensor>;

}  // namespace kiln
