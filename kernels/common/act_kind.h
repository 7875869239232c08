// The activations that an op may have behind it (batchnorm, conv2d); formulas as in activation.h.
#pragma once

#include <utility>

#include "kernels/common/host_device.h"

namespace kiln {

enum class ActKind { kNone, kRelu, kRelu6, kGelu, kSilu };

// As problem strings name them.
inline constexpr std::pair<ActKind, const char*> kActNames[] = {
    {ActKind::kRelu, "relu"}, {ActKind::kRelu6, "relu6"}, {ActKind::kGelu, "gelu"}, {ActKind::kSilu, "silu"}};

// gelu and silu, which have a slope everywhere; the others are a clamp.
KILN_HOST_DEVICE inline bool is_smooth(ActKind act) { return act == ActKind::kGelu || act == ActKind::kSilu; }

}  // namespace kiln
