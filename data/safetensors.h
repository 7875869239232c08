// The safetensors file format: 8 bytes of header length (little-endian), a JSON header, then the tensors'
// bytes. https://huggingface.co/docs/safetensors
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace kiln {

struct SafeTensor {
  std::string name;
  std::string dtype;                // "F32", "I64"; others are read but not interpreted
  std::vector<int64_t> shape;       // {} for a scalar
  std::vector<unsigned char> data;  // little-endian
};

struct SafeTensors {
  std::vector<SafeTensor> tensors;
  std::map<std::string, std::string> metadata;
};

SafeTensor f32_tensor(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values);
SafeTensor i64_tensor(const std::string& name, int64_t value);  // a scalar

// Writes to a temporary name beside `path`, flushes it to the disk, renames: a reader sees the old file or
// the whole new one. Throws Error(kFailure) naming the path.
void write_safetensors(const std::string& path, const SafeTensors& file);

// Throws Error naming the path for a file that is missing, truncated or damaged: the header must be valid,
// the tensors' ranges must fit their shapes and dtypes and cover the data without gap or overlap.
SafeTensors read_safetensors(const std::string& path);

}  // namespace kiln
