// KILN_HOST_DEVICE: marks functions that both CUDA and C++ sources compile.
#pragma once

#ifdef __CUDACC__
#define KILN_HOST_DEVICE __host__ __device__
#else
#define KILN_HOST_DEVICE
#endif
