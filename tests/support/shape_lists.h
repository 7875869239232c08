// The parts of the shape table (shapes.h).
#pragma once

#include <vector>

#include "tests/support/shapes.h"

namespace kiln {

std::vector<NamedProblem> peer_problems();
std::vector<NamedProblem> test_convolutions();  // conv2d
std::vector<NamedProblem> test_depthwise_convolutions();
std::vector<NamedProblem> test_other_layers();  // linear, batchnorm, pooling, relu, add, softmax_xent
std::vector<NamedProblem> test_updates();       // sgd, grad_norm, augment

}  // namespace kiln
