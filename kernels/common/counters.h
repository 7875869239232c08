// Words that a plan keeps between launches: counters of arrived blocks, by which the last block of a launch
// is known, and places where blocks meet.
#pragma once

#include <memory>

#include "kernels/common/check.h"

namespace kiln {

// `count` words (unsigned) of device memory, 0 before the first launch; each launch must leave them at 0, or
// as the next one may find them, so that a graph may be replayed. A plan makes its own (workspace is not zero
// before a launch) and its bindings share them, as they share its workspace: their launches must not overlap.
// They are freed with the plan and its last binding: who replays a graph of launches must keep one of these.
std::shared_ptr<const DeviceBuffer> zeroed_counters(int count);

}  // namespace kiln
