// Gelu and Silu of activation_math.h in fp32 without branches and calls, so that loops over them vectorise.
//
// Each agrees with the exact function within about 3e-7 of max(1, |u|), and on which inputs give NaN. Phi's
// tail is
//   1 - Phi(a) = exp(-a^2 / 2) t S(t),  t = 1 / (1 + a / 4),  a >= 0,
// with a polynomial S whose coefficients were fitted to 9e-9 over a < 14; beyond, the tail is 0 in fp32.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace kiln {

// e^v within about 2 roundings; 0 below -87 (almost denormal) and infinity above 88.3 (almost overflow).
inline float exp_lane(float v) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * kLn2High is exact
  constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: a sum with it holds the nearest integer in its low bits
  const float shifted = v * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (v - n * kLn2High) - n * kLn2Low;
  float p = 0.00138131436f;
  p = p * r + 0.00836941879f;
  p = p * r + 0.0416684560f;
  p = p * r + 0.166665152f;
  p = p * r + 0.49999994f;
  p = p * r * r + r + 1.0f;
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);  // 2^n
  const float power = p * scale;
  return v < -87.0f ? 0.0f : v > 88.3f ? std::numeric_limits<float>::infinity() : power;
}

struct NormalLane {
  float cdf;    // Phi(u)
  float decay;  // exp(-u^2 / 2)
};

inline NormalLane normal_lane(float u) {
  const float decay = exp_lane(-0.5f * u * u);
  const float t = 1.0f / (1.0f + 0.25f * std::fabs(u));
  float s = -0.0904595703f;
  s = s * t + 0.336617678f;
  s = s * t - 0.258095831f;
  s = s * t + 0.272939175f;
  s = s * t + 0.0289232284f;
  s = s * t + 0.111158043f;
  s = s * t + 0.0989172980f;
  const float tail = decay * (t * s);
  return {.cdf = u < 0.0f ? tail : 1.0f - tail, .decay = decay};
}

struct GeluLane {
  static float fwd(float x) { return x * normal_lane(x).cdf; }
  static float bwd(float dy, float x) {
    constexpr float kRsqrt2Pi = 0.398942280f;
    const NormalLane normal = normal_lane(x);
    return dy * (normal.cdf + x * (kRsqrt2Pi * normal.decay));
  }
};

struct SiluLane {
  static float fwd(float x) { return x / (1.0f + exp_lane(-x)); }
  static float bwd(float dy, float x) {
    const float s = 1.0f / (1.0f + exp_lane(-x));
    return dy * (s * (1.0f + x * (1.0f - s)));
  }
};

}  // namespace kiln
