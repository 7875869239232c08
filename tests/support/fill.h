// Input data of a case: the same bits for the same arguments on every machine with the same libm.
#pragma once

#include "kernels/common/registry.h"

namespace kiln {

// kExact: small integers, on which sums of products are exact in fp32. kReal: normal data.
enum class FillMode { kExact, kReal };

const char* name_of(FillMode mode);

// The largest |value| of exact-mode data behind a sum of `terms` products: 3, 2 or 1, so that every partial
// sum stays below 2^24 and is exact in fp32 in any order. Throws Error where not even 1 does.
int exact_limit(double terms);

// Fills every input of `problem` (in its fp32 form) and rounds those that `dtype` stores in fewer bits, so
// that both see the same values; derived inputs come from the pass.
HostTensors make_inputs(const PassInfo& pass, std::string_view problem, DType dtype, uint64_t seed,
                        FillMode mode);

}  // namespace kiln
