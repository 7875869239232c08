// Random problems of every op, the same for the same seed: small, with a bias to what kernels trip over (odd
// sizes, tails, strides, rectangular filters and padding) and to the sizes that the tensor-core kernels ask
// for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace kiln {

// Draws of one seed, in order.
class Draws {
 public:
  explicit Draws(uint64_t seed) : seed_(seed) {}
  uint32_t bits();
  int below(int n);           // [0, n)
  int between(int a, int b);  // [a, b]
  bool chance(int percent);
  int pick(std::initializer_list<int> values);

 private:
  uint64_t seed_, next_ = 0;
};

// A problem string without its flags (bias, acc, arg8, activation, ...), valid in every dtype. Throws Error
// for an op that it does not know.
std::string random_problem(std::string_view op, uint64_t seed);

// The same for ops with a window, on an image that is large enough for the window to move by a stride or more
// within it.
std::string random_roomy_problem(std::string_view op, uint64_t seed);

// A conv2d problem with the flags that one of its passes takes, for `pass` alone: three of four have the
// channels that tensor-core kernels ask for, a third have flags.
std::string random_conv2d(std::string_view pass, uint64_t seed);

}  // namespace kiln
