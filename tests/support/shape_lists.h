// The parts of the shape table (shapes.h).
#pragma once

#include <string>
#include <vector>

#include "tests/support/shapes.h"

namespace kiln {

inline std::string num(long long value) { return std::to_string(value); }
inline std::string channels(int c) { return "_c" + num(c); }

std::vector<NamedProblem> peer_problems();
std::vector<NamedProblem> test_convolutions();  // conv2d
std::vector<NamedProblem> test_depthwise_convolutions();
std::vector<NamedProblem> test_other_layers();  // linear, batchnorm, pooling, relu, add, softmax_xent
std::vector<NamedProblem> test_updates();       // sgd, grad_norm, augment

}  // namespace kiln
