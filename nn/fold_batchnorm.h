// Folding batchnorms into the layers before them, for inference.
#pragma once

#include <vector>

#include "nn/network.h"

namespace kiln {

// A network with its tensors, in the order of its ParameterLayout.
struct FoldedNetwork {
  NetworkDescription description;
  std::vector<NamedTensor> parameters;
  std::vector<NamedTensor> statistics;  // of the batchnorms that stay
};

// Removes every batchnorm that alone reads a conv2d, depthwise_conv2d or linear layer. With rstd = 1 /
// sqrt(running_var + eps), output k of that layer gets, computed in double,
//   w'[k] = w[k] * gamma[k] * rstd[k],  bias'[k] = beta[k] + (bias[k] - running_mean[k]) * gamma[k] *
//   rstd[k].
// Whoever read the batchnorm reads the layer; other batchnorms stay. `parameters` and `statistics` are in the
// order of the network's ParameterLayout, in PyTorch's layouts.
FoldedNetwork fold_batchnorm(const ShapedNetwork& network, const std::vector<NamedTensor>& parameters,
                             const std::vector<NamedTensor>& statistics);

}  // namespace kiln
