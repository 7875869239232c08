// Launchers of the bandwidth probes. `bytes` must be a multiple of 32 KiB; buffers are 16-byte aligned.
#pragma once

#include <cstddef>

#include "kernels/common/device.h"

namespace kiln {

// Reads [bytes] of x. `sink` (at least 16 bytes) is written only if the data adds up to a value that it does
// not.
void probe_read(const void* x, void* sink, size_t bytes, int blocks, Stream stream);
// Reads [bytes] of x through L2 (not L1).
void probe_l2(const void* x, void* sink, size_t bytes, int blocks, Stream stream);
void probe_write(void* y, size_t bytes, Stream stream);
void probe_copy(const void* x, void* y, size_t bytes, Stream stream);

// Multiplies and adds in registers; writes `sink` (at least 16 bytes) as probe_read does.
void probe_fma(void* sink, int multiprocessors, Stream stream);
double probe_fma_flops(int multiprocessors);           // of one such launch
void probe_nothing(Stream stream);                     // an empty kernel
void probe_wait(unsigned nanoseconds, Stream stream);  // one thread that waits so long

// Random finite values in [-1, 1): fp32, or with `element` 2 bf16 or fp16.
void fill_noise(void* x, size_t bytes, int element, bool bf16, Stream stream);

}  // namespace kiln
