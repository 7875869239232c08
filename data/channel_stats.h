// Mean and standard deviation of a data set's channels.
#pragma once

#include "data/dataset.h"

namespace kiln {

// Fills data.mean and data.std from the training pixels / 255 (divisor: the number of pixels). Sums are
// integers, so that the result is the same on every machine. A channel of one value gets std 1, for the input
// is divided by it.
void set_channel_stats(DataPair& data);

}  // namespace kiln
