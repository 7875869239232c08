// Division by a divisor that is known before the launch.
#pragma once

namespace kiln {

// Division by an invariant divisor through a multiplication, for dividends below 2^31 (Granlund and
// Montgomery, "Division by invariant integers using multiplication", 1994).
class FastDivisor {
 public:
  FastDivisor() = default;  // by 1
  __host__ __device__ explicit FastDivisor(unsigned divisor) {
    while ((1u << shift_) < divisor) ++shift_;
    factor_ = static_cast<unsigned>((((1ull << shift_) - divisor) << 32) / divisor + 1);
  }
  __device__ int divide(int a) const {
    const auto n = static_cast<unsigned>(a);
    return static_cast<int>((__umulhi(n, factor_) + n) >> shift_);
  }

 private:
  unsigned factor_ = 1, shift_ = 0;
};

}  // namespace kiln
