// Launchers of the bandwidth probes. `bytes` must be a multiple of 32 KiB; buffers are 16-byte aligned.
#pragma once

#include <cstddef>

#include "kernels/common/device.h"

namespace kiln {

// Reads [bytes] of x. `sink` (at least 16 bytes) is written only if the data adds up to a value that it does
// not.
void probe_read(const void* x, void* sink, size_t bytes, int blocks, Stream stream);
void probe_write(void* y, size_t bytes, Stream stream);
void probe_copy(const void* x, void* y, size_t bytes, Stream stream);

}  // namespace kiln
