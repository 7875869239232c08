// The mask of where an activation passed, from its output: for kernels in which no thread holds the eight
// channels of a byte.
#pragma once

#include "kernels/batchnorm/batchnorm.h"

namespace kiln {

// Enqueues mask[m,b] = bits of y[m,8b..8b+7]; p.masked() must hold.
void launch_batchnorm_mask(const BatchnormProblem& p,
                           const void* y,  // [N,H,W,C] dtype
                           void* mask,     // [N,H,W,ceil(C/8)]
                           Stream stream);

}  // namespace kiln
