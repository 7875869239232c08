// NumPy's .npy files, format versions 1 and 2: C-ordered little-endian float32, int32 and uint8 arrays.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"

namespace kiln {

struct NpyArray {
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;  // kF32, kI32 or kU8
  std::vector<unsigned char> data;
};

// Throws Error naming the file and what is wrong with it: missing, no .npy file, another type ("<f8"; the
// message says how to convert), Fortran order, or fewer or more bytes than the shape needs.
NpyArray read_npy(const std::string& path);

// Version 1. Throws Error(kFailure) where the file cannot be written.
void write_npy(const std::string& path, const NpyArray& array);

// "(2, 3)", "(5,)", "()": as NumPy prints a shape.
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace kiln
